"""Archives as ``torch.save`` writes them, entry by entry, and pickles instruction by instruction."""

import pickle
import struct
import zipfile

PROTO, STOP, MARK = pickle.PROTO + b"\2", pickle.STOP, pickle.MARK


def text(value):
    """Put a text on the stack."""
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def number(value):
    """Put a number on the stack."""
    encoded = pickle.encode_long(value)
    return pickle.LONG1 + bytes([len(encoded)]) + encoded


def name(module, attribute):
    """Put a class or function on the stack."""
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def many(*values):
    """Put a tuple on the stack."""
    return MARK + b"".join(values) + pickle.TUPLE


def call(function, *arguments):
    """Put the result of a function on the stack."""
    return function + many(*arguments) + pickle.REDUCE


def mapping(**values):
    """Put a mapping on the stack."""
    return pickle.EMPTY_DICT + b"".join(text(key) + value + pickle.SETITEM for key, value in values.items())


def storage(key="0", numel=4, kind=("torch", "FloatStorage")):
    """Put stored numbers on the stack."""
    return many(text("storage"), name(*kind), text(key), text("cpu"), number(numel)) + pickle.BINPERSID


def tensor(size=(4,), stride=(1,), start=0, stored=None):
    """Put a tensor on the stack."""
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    sizes = (many(*map(number, each)) for each in (size, stride))
    hooks = name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    return call(rebuild, storage() if stored is None else stored, number(start), *sizes, pickle.NEWFALSE, hooks)


def whole(*instructions):
    """Return a pickle."""
    return PROTO + b"".join(instructions) + STOP


def write_archive(path, content, storages=None, method=zipfile.ZIP_STORED, **more):
    """Write an archive of a pickle and stored numbers; ``more`` are entries beside them."""
    stored = {"0": struct.pack("<4f", 1, 2, 3, 4)} if storages is None else storages
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("model/data.pkl", content)
        archive.writestr("model/version", "3\n")
        for key, values in stored.items():
            archive.writestr(f"model/data/{key}", values)
        for entry, values in more.items():
            archive.writestr(f"model/{entry}", values)
    return path
