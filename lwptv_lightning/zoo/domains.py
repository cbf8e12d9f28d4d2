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
_NEAR_DOMAINS: Final = {
    "georgian_noise": Domain("georgian", "noise", 1.0),
    "cyrillic_elastic": Domain("cyrillic", "elastic", 1.0),
    "symbols_photo": Domain("symbols", "photo", 1.0),
    "arrows_dots": Domain("arrows", "dots", 0.95),
    "digits_rotated": Domain("digits", "rotated", 1.0),
}
_FAR_DOMAINS: Final = {
    "georgian_pixelated": Domain("georgian", "pixelated", 0.8),
    "cyrillic_outline": Domain("cyrillic", "outline", 0.65),
    "symbols_low_contrast": Domain("symbols", "low_contrast", 0.8),
    "arrows_occluded": Domain("arrows", "occluded", 0.7),
}
DOMAINS: Final[dict[str, Domain]] = _ID_DOMAINS | _NEAR_DOMAINS | _FAR_DOMAINS
"""The rendered sets."""

DIGITS: Final = "digits"
"""The set of real handwriting: it has a test split only."""

ID_SETS: Final[tuple[str, ...]] = tuple(_ID_DOMAINS)
"""In-domain sets, one per expert; also the experts' task names."""

NEAR_SETS: Final[tuple[str, ...]] = tuple(_NEAR_DOMAINS)
"""Out-of-domain sets of unseen classes in the styles, at the strengths, that the experts are tuned on."""

FAR_SETS: Final[tuple[str, ...]] = (*_FAR_DOMAINS, DIGITS)
"""Out-of-domain sets of unseen classes in unseen styles."""

OOD_SETS: Final[tuple[str, ...]] = NEAR_SETS + FAR_SETS
"""Out-of-domain sets: no expert is tuned on any of them."""

_PLACES: Final = {"id": ID_SETS, "ood/near": NEAR_SETS, "ood/far": FAR_SETS}


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


def loader_name(name: str) -> str:
    """Return what the loader of a set is called.

    Args:
        name: A name in :data:`ID_SETS` or :data:`OOD_SETS`.

    Raises:
        UnknownNameError: If there is no such set; it is a ``KeyError``.

    Example:
        >>> loader_name("greek_noise"), loader_name("georgian_noise"), loader_name("digits")
        ('id/greek_noise', 'ood/near/georgian_noise', 'ood/far/digits')
    """
    set_alphabet(name)
    return next(f"{place}/{name}" for place, sets in _PLACES.items() if name in sets)


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
