"""What each set of the zoo shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from lwptv_lightning.registry import UnknownNameError

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Domain:
    """One alphabet seen in one style.

    Args:
        alphabet: A key of :data:`lwptv_lightning.zoo.glyphs.ALPHABETS`.
        style: A name in :data:`lwptv_lightning.zoo.styles.STYLES`.
        strength: Fraction in [0, 1] of the style.
    """

    alphabet: str
    style: str
    strength: float


_ID_DOMAINS: Final = {
    "upper_photo": Domain("upper", "photo", 1.0),
    "greek_noise": Domain("greek", "noise", 1.0),
    "armenian_elastic": Domain("armenian", "elastic", 1.0),
    "lower_rotated": Domain("lower", "rotated", 1.0),
    "maths_dots": Domain("maths", "dots", 0.95),
}
_OOD_DOMAINS: Final = {
    "georgian_pixelated": Domain("georgian", "pixelated", 0.8),
    "cyrillic_outline": Domain("cyrillic", "outline", 0.65),
    "symbols_low_contrast": Domain("symbols", "low_contrast", 0.8),
    "arrows_occluded": Domain("arrows", "occluded", 0.7),
}
DOMAINS: Final[dict[str, Domain]] = _ID_DOMAINS | _OOD_DOMAINS
"""The rendered sets."""

DIGITS: Final = "digits"
"""The set of real handwriting: it has a test split only."""

ID_SETS: Final[tuple[str, ...]] = tuple(_ID_DOMAINS)
"""In-domain sets, one per expert; also the experts' task names."""

OOD_SETS: Final[tuple[str, ...]] = (*_OOD_DOMAINS, DIGITS)
"""Out-of-domain sets: no expert is tuned on any of them."""


def set_alphabet(name: str) -> str:
    """Return the alphabet whose classes a set is labelled with.

    Args:
        name: A name in :data:`ID_SETS` or :data:`OOD_SETS`.

    Returns:
        A key of :data:`lwptv_lightning.zoo.glyphs.ALPHABETS`.

    Raises:
        UnknownNameError: If there is no such set; it is a ``KeyError``.

    Example:
        >>> set_alphabet("greek_noise")
        'greek'
    """
    if name not in ID_SETS + OOD_SETS:
        raise UnknownNameError("set", name, ID_SETS + OOD_SETS)
    return "digits" if name == DIGITS else DOMAINS[name].alphabet


def splits(name: str) -> tuple[str, ...]:
    """Return the splits that a set has.

    Args:
        name: A name in :data:`ID_SETS` or :data:`OOD_SETS`.

    Returns:
        Names of splits.

    Example:
        >>> splits("digits")
        ('test',)
    """
    return ("test",) if name == DIGITS else get_args(Split)
