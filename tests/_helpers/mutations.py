"""Damages files: blindly, and where their structure hurts most."""

import io
import json
import pickletools
import struct
import zipfile

NUMBERS = (0, 1, -1, 2, 7, 63, 64, 127, 255, 256, 1000, 65535, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 10**30)
TEXTS = ("", "x", "..", "../x", "/etc/passwd", "\0", "\ud800", "F32", "F64", "(a+)+b")
VALUES = (*NUMBERS, *TEXTS, None, True, [], [[]], {}, 1.5, 1e308)


def flip(raw, drawn):
    raw = bytearray(raw)
    for _ in range(drawn.choice((1, 1, 1, 2, 8))):
        if raw:
            raw[drawn.randrange(len(raw))] ^= 1 << drawn.randrange(8)
    return bytes(raw)


def cut(raw, drawn):
    return raw[: drawn.randrange(len(raw) + 1)]


def insert(raw, drawn):
    at, more = drawn.randrange(len(raw) + 1), drawn.randbytes(drawn.choice((1, 2, 8, 100)))
    return raw[:at] + more + raw[at:]


def leave_out(raw, drawn):
    at = drawn.randrange(len(raw) + 1)
    return raw[:at] + raw[at + drawn.choice((1, 2, 8, 100)) :]


def overwrite(raw, drawn):
    at, length = drawn.randrange(len(raw) + 1), drawn.choice((1, 2, 4, 8, 64))
    return raw[:at] + drawn.choice((b"\0" * length, b"\xff" * length, drawn.randbytes(length))) + raw[at + length :]


def repeat(raw, drawn):
    start, stop = sorted(drawn.randrange(len(raw) + 1) for _ in range(2))
    return raw[:stop] + raw[start:]


BLIND = (flip, flip, cut, insert, leave_out, overwrite, repeat)


def in_first_bytes(raw, drawn):
    """Flip bits where a file's own sizes stand."""
    return flip(raw[:256], drawn) + raw[256:]


def in_last_bytes(raw, drawn):
    """Flip bits where an archive's directory stands."""
    return raw[:-256] + flip(raw[-256:], drawn)


def in_json(raw, drawn):
    """Change, leave out, rename or repeat one value."""
    content = json.loads(raw)
    holders = list(_holders(content))
    if not holders:
        return json.dumps(drawn.choice(VALUES)).encode()
    for _ in range(drawn.choice((1, 1, 2))):
        holder, key = drawn.choice(holders)
        _change(holder, key, drawn)
    text = json.dumps(content).encode()
    return text.replace(b": ", b": " + b"[" * 3000, 1) if drawn.random() < 0.01 else text


def _holders(value):
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _holders(value[key])


def _change(holder, key, drawn):
    if isinstance(holder, list) and key >= len(holder):
        return
    old = holder[key] if isinstance(holder, list) else holder.get(key)
    how = drawn.randrange(5)
    if how == 0:
        holder.pop(key, None) if isinstance(holder, dict) else holder.pop(key)
    elif how == 1 and isinstance(holder, dict):
        holder[drawn.choice(("x", "", "weight", f"{key}.x", "\u202e"))] = holder.pop(key, None)
    elif how == 2 and type(old) is int:
        holder[key] = old + drawn.choice((-1, 1, 4, -4, 8))
    elif how == 3 and isinstance(holder, dict) and len(holder) > 1:
        holder[key] = holder[drawn.choice(list(holder))]
    else:
        holder[key] = drawn.choice(VALUES)


def in_header(raw, drawn):
    """Change the header of a safetensors file, whose length is made to fit, or that length."""
    length = int.from_bytes(raw[:8], "little")
    if drawn.random() < 0.1:
        return (length + drawn.choice((-1, 1, 8, 2**20, 2**62))).to_bytes(8, "little") + raw[8:]
    header = in_json(raw[8 : 8 + length], drawn)
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]


def in_pickle(raw, drawn):
    """Change, leave out, repeat or move an instruction."""
    parts = _instructions(raw)
    for _ in range(drawn.choice((1, 1, 2))):
        at = drawn.randrange(len(parts))
        how, (code, part) = drawn.randrange(4), parts[at]
        if how == 0:
            del parts[at]
        elif how == 1:
            parts.insert(drawn.randrange(len(parts)), (code, part))
        elif how == 2 and code in ("BININT", "BININT1", "BININT2", "LONG1"):
            number = drawn.choice(NUMBERS)
            encoded = number.to_bytes(20, "little", signed=True)
            parts[at] = "LONG1", b"\x8a" + bytes([len(encoded)]) + encoded
        elif how == 2 and len(part) > 1:
            parts[at] = code, part[:1] + flip(part[1:], drawn)
        else:
            other = drawn.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        if not parts:
            break
    return b"".join(part for _, part in parts)


def _instructions(raw):
    found = [(code.name, at) for code, _, at in pickletools.genops(raw)]
    ends = [at for _, at in found[1:]] + [len(raw)]
    return [(name, raw[at:end]) for (name, at), end in zip(found, ends, strict=True)]


def in_archive(raw, drawn):
    """Write an archive anew with another pickle, or with an entry that was changed, left out, renamed or repeated."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.namelist()]
    pickled = next(number for number, (entry, _) in enumerate(entries) if entry.endswith("data.pkl"))
    how, at = drawn.randrange(6), drawn.randrange(len(entries))
    entry, content = entries[at]
    if how < 3:
        entries[pickled] = (entries[pickled][0], in_pickle(entries[pickled][1], drawn))
    elif how == 3:
        entries[at] = (entry, drawn.choice(BLIND)(content, drawn))
    elif how == 4:
        del entries[at]
    else:
        entries[at] = (drawn.choice((entry + "x", entry.partition("/")[2], "../" + entry)), content)
    method = drawn.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, values in entries:
            archive.writestr(name, values)
    return made.getvalue()


def in_archive_headers(raw, drawn):
    """Change a field of a header of an archive's entries or of its directory."""
    raw = bytearray(raw)
    starts = [at for at in range(len(raw) - 4) if raw[at : at + 4] in (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6")]
    at = drawn.choice(starts) + 4 + 2 * drawn.randrange(20)
    short = struct.pack("<H", drawn.choice((0, 1, 8, 0xFFFF)))
    long = struct.pack("<I", drawn.choice((0, 1, 64, 2**16, 2**32 - 1)))
    new = drawn.choice((short, long))
    raw[at : at + len(new)] = new[: max(len(raw) - at, 0)]
    return bytes(raw)


def in_sequence(raw, drawn):
    """Change one of the pickles that stand before the numbers in a file of before torch 1.6."""
    file, ends = io.BytesIO(raw), [0]
    for _ in range(5):
        for _instruction in pickletools.genops(file):
            pass
        ends.append(file.tell())
    which = drawn.choice((0, 1, 2, 3, 3, 3, 3, 4))
    return raw[: ends[which]] + in_pickle(raw[ends[which] : ends[which + 1]], drawn) + raw[ends[which + 1] :]
