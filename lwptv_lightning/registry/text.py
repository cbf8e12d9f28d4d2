"""Names that come from files and users, as text that a terminal shows and never obeys."""

import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAME = 200
"""The most characters of a name that are shown."""
_MESSAGE = 4_000
"""The most characters of a message that are shown."""
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Categories of what steers a terminal, turns the direction of writing, breaks a line, or is no character."""
_BLANK = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), 0x3164, 0xFFA0, *range(0xE0000, 0xE1000)}
"""What Unicode lets vanish although its category does not say so."""
_JOINS = {0x200C, 0x200D}
"""What parts or joins letters of Arabic and Indic writing, and makes one emoji of several."""
_VARIES = range(0xFE00, 0xFE10)
"""What chooses a form of the character before it."""
_JOINED = {"Lo", "Mn", "Mc", "So", "Sk"}
"""Categories of what is joined."""


def printable(text: object, most: int = _MESSAGE) -> str:
    r"""Return text on one line whose every character is seen: what is not is written as Python's escape.

    Control characters, ends of lines, marks of direction, what has no width and lone surrogates are escaped. Letters
    of all writings, accents and emoji stay. Where the text is longer, it lacks its middle.

    Args:
        text: A name, or what was made of names.
        most: How many characters of it are shown.

    Example:
        >>> print(printable("a\x1b[2Jb\n\u202ec 中文 é"))
        a\x1b[2Jb\n\u202ec 中文 é
    """
    text = _shortened(str(text), most)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(text, place) for place in range(len(text)))


def printable_name(name: object) -> str:
    """Return a name as `printable` does, shortened where it is too long for a line."""
    return printable(name, _NAME)


def shortened(text: str, most: int) -> str:
    """Return text, without its middle where it takes more columns of a terminal than there are.

    Example:
        >>> shortened("vit_base_patch16_224.augreg_in21k", 20)
        'vit_base_..reg_in21k'
    """
    if width_of(text) <= most:
        return text
    begin, end = "", ""
    for index in range(len(text)):
        # By turns, as the ends of names tell them apart as often as their beginnings.
        letter = text[-1 - index // 2] if index % 2 else text[index // 2]
        if width_of(begin) + width_of(end) + width_of(letter) + 2 > most:
            break
        begin, end = (begin, letter + end) if index % 2 else (begin + letter, end)
    return f"{begin}..{end}"


def width_of(text: str) -> int:
    """Return how many columns of a terminal text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text
    )


@contextmanager
def any_character(stream: Any = None) -> Iterator[None]:
    r"""Let a text stream, by default the standard output, take what its encoding has not: as Python's escape.

    Example:
        >>> import io
        >>> stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        >>> with any_character(stream):
        ...     print("a中", file=stream, end="", flush=True)
        >>> stream.buffer.getvalue()
        b'a\\u4e2d'
    """
    stream = sys.stdout if stream is None else stream
    before = getattr(stream, "errors", None)
    if before != "strict" or not hasattr(stream, "reconfigure"):  # such as a notebook's, which takes everything
        yield
        return
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        stream.reconfigure(errors=before)


def encodable(text: str) -> str:
    r"""Return text with escapes for lone surrogates, which no encoding has; of bytes that were no text, for example.

    Example:
        >>> encodable("a\udcff")
        'a\\udcff'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _shown(text: str, place: int) -> str:
    letter = text[place]
    code = ord(letter)
    if code in _VARIES or code in _JOINS:
        return letter if _is_joined(text, place) else _escaped(letter)
    return _escaped(letter) if code in _BLANK or unicodedata.category(letter) in _UNSEEN else letter


def _is_joined(text: str, place: int) -> bool:
    """Tell whether a character that joins, or that chooses a form, stands where writing or emoji have it."""
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    if ord(text[place]) in _VARIES:
        return bool(before) and not (before.isalpha() or before.isspace()) and ord(before) not in _VARIES
    return all(each and unicodedata.category(each) in _JOINED and ord(each) not in _BLANK for each in (before, after))


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    end = most // 4
    gap = f"...[{len(text) - most} characters more]..."
    return text[: most - end - len(gap)] + gap + text[-end:]
