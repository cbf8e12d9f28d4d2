"""The natural order of names, in which layer 2 stands before layer 10."""

import math
import re
from collections.abc import Iterable

_MOST_DIGITS = 1000
"""Python reads no number of some thousand digits, nor has a model so many layers."""


def natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sort the dotted names of tensors part by part, numbers in them by value.

    What a file lists first says nothing of a model: safetensors writes names by dtype and alphabet.

    Example:
        >>> natural_order(["blocks.10.fc", "blocks.9.norm", "blocks.9.fc", "bias"])
        ('bias', 'blocks.9.fc', 'blocks.9.norm', 'blocks.10.fc')
    """
    return tuple(sorted(names, key=lambda name: [(_numbered(part), part) for part in name.split(".")]))


def _numbered(part: str) -> list[str | float]:
    """Divide a text into what stands between numbers, and these, by turns."""
    return [_number(piece) if turn % 2 else piece for turn, piece in enumerate(re.split(r"(\d+)", part))]


def _number(digits: str) -> float:
    return int(digits) if len(digits) <= _MOST_DIGITS else math.inf
