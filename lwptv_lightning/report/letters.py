"""Names in pictures: what the fonts can draw of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import takewhile

from matplotlib.font_manager import FontProperties, findfont, get_font

from lwptv_lightning.registry import printable

_LABEL = 80
"""The most characters of a name in a picture."""


def drawable(name: str, most: int = _LABEL) -> str:
    """Return a name, as far as there is room, with Python's escapes for what is not seen or the fonts cannot draw.

    Example:
        >>> drawable("Ωμέγα")
        'Ωμέγα'
    """
    known, name = _characters(tuple(FontProperties().get_family())), printable(name, _LABEL)
    drawn = (letter if ord(letter) in known else letter.encode("unicode_escape").decode() for letter in name)
    shown = printable("".join(drawn), _LABEL)
    end = most // 3
    return shown if len(shown) <= most else f"{shown[: most - end - 1]}…{shown[-end:]}"


def drawable_apart(names: Sequence[str], most: int) -> list[str]:
    """Return names as `drawable` does, without what all of them begin or end with where they would look the same.

    Example:
        >>> drawable_apart([f"a_model_with_a_name_that_is_too_long, {x}, and_goes_on" for x in "ab"], 20)
        ['…a…', '…b…']
    """
    shown = [drawable(name, most) for name in names]
    if len({*shown}) == len({*names}):
        return shown
    begin = _in_common(names)
    ends = [name[begin:][::-1] for name in names]
    end = _in_common(ends)
    return [drawable(f"…{text[end:][::-1]}{'…' if end else ''}", most) for text in ends]


def _in_common(names: Sequence[str]) -> int:
    """Return with how many equal letters all names begin."""
    return sum(1 for _ in takewhile(lambda letters: len({*letters}) == 1, zip(*names, strict=False)))


@cache
def _characters(families: tuple[str, ...]) -> frozenset[int]:
    paths = {findfont(FontProperties(family=[family])) for family in families}
    return frozenset(code for path in paths for code in get_font(path).get_charmap())
