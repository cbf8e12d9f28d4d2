"""What happens to a character on its way to an image: placement, texture and damage.

A style is a function of the ink, a strength and a random generator. Warps act on the coordinates at which the
mask is sampled; finishes act on the sampled ink. Each strength is a fraction: 0 leaves the character (almost)
alone, 1 is the most that a set of the zoo asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
from matplotlib.cbook import get_sample_data
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.zoo.glyphs import MASK_SIZE

IMAGE_SIZE: Final = 32
"""Height and width of an image in pixels."""

Pixels = NDArray[np.float32]
Finish = Callable[[Pixels, float, np.random.Generator], Pixels]

_ROWS, _COLUMNS = (axis.astype(np.float32) for axis in np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE])


def render(mask: Pixels, style: str, strength: float, generator: np.random.Generator) -> Pixels:
    """Turn a mask into an image.

    Args:
        mask: ``(64, 64)``, ink 1 on ground 0.
        style: A name in :data:`STYLES`.
        strength: Fraction in [0, 1].
        generator: The only source of chance.

    Returns:
        ``(32, 32)``, zero mean and unit variance: a network sees the shape, not the exposure.

    Raises:
        UnknownNameError: If there is no such style.
        ValueError: If ``strength`` is outside [0, 1].

    Example:
        >>> from lwptv_lightning.zoo.glyphs import glyph_mask
        >>> image = render(glyph_mask("A", "cmr10"), "noise", 0.5, np.random.default_rng(0))
        >>> image.shape, str(image.dtype)
        ((32, 32), 'float32')
    """
    if style not in STYLES:
        raise UnknownNameError("style", style, STYLES)
    if not 0 <= strength <= 1:
        raise ValueError(f"strength: expected a fraction in [0, 1], got {strength}")
    turn = np.deg2rad(75) * strength if style == "rotated" else np.deg2rad(7)
    bend = 8.5 * strength if style == "elastic" else 0.0
    ink = _warp(mask, turn, bend, generator)
    return standardise(_FINISHES[style](ink, strength, generator) if style in _FINISHES else ink)


def standardise(image: Pixels) -> Pixels:
    """Shift and scale an image to zero mean and unit variance.

    Args:
        image: Any shape; a constant image becomes all zeros.

    Returns:
        The same shape, float32.

    Example:
        >>> standardise(np.array([[0.0, 2.0]], dtype=np.float32))
        array([[-1.,  1.]], dtype=float32)
    """
    centred = image - image.mean()
    return np.asarray(centred / max(float(centred.std()), 1e-6), dtype=np.float32)


def _warp(mask: Pixels, turn: float, bend: float, generator: np.random.Generator) -> Pixels:
    """Sample the mask at jittered places: turned by up to ``turn`` radians, bent by up to ``bend`` mask pixels."""
    angle, shear = generator.uniform(-turn, turn), generator.uniform(-0.1, 0.1)
    pitch = MASK_SIZE / IMAGE_SIZE * generator.uniform(0.85, 1.15, size=2)
    shift = generator.uniform(-3, 3, size=2)
    y, x = _ROWS - (IMAGE_SIZE - 1) / 2, _COLUMNS - (IMAGE_SIZE - 1) / 2
    x = x + shear * y
    rows = pitch[0] * (np.cos(angle) * y - np.sin(angle) * x) + shift[0]
    columns = pitch[1] * (np.sin(angle) * y + np.cos(angle) * x) + shift[1]
    if bend:
        rows = rows + bend * _smooth_field(generator, cells=4)
        columns = columns + bend * _smooth_field(generator, cells=4)
    return _sample(mask, rows + (MASK_SIZE - 1) / 2, columns + (MASK_SIZE - 1) / 2)


def _sample(mask: Pixels, rows: Pixels, columns: Pixels) -> Pixels:
    """Bilinear interpolation; places outside the mask read its blank border."""
    rows, columns = np.clip(rows, 0, MASK_SIZE - 1.001), np.clip(columns, 0, MASK_SIZE - 1.001)
    top, left = rows.astype(np.intp), columns.astype(np.intp)
    down, right = rows - top, columns - left
    upper = mask[top, left] * (1 - right) + mask[top, left + 1] * right
    lower = mask[top + 1, left] * (1 - right) + mask[top + 1, left + 1] * right
    return np.asarray(upper * (1 - down) + lower * down, dtype=np.float32)


def _smooth_field(generator: np.random.Generator, cells: int) -> Pixels:
    """``(32, 32)`` in about [-1, 1] that varies over ``cells`` waves at most."""
    coarse = Image.fromarray(generator.uniform(-1, 1, size=(cells + 1, cells + 1)).astype(np.float32))
    return np.asarray(coarse.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC), dtype=np.float32)


@lru_cache(maxsize=1)
def _photograph() -> Pixels:
    """A grey photograph at a scale where a 32-pixel window holds edges and texture."""
    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as picture:
        grey = picture.convert("L").resize((256, 300), Image.Resampling.BILINEAR)
    return np.asarray(grey, dtype=np.float32) / np.float32(255)


def _photo(ink: Pixels, strength: float, generator: np.random.Generator) -> Pixels:
    photograph = _photograph()
    top, left = (int(generator.integers(side - IMAGE_SIZE)) for side in photograph.shape)
    window = photograph[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
    window = (window - window.min()) / max(float(np.ptp(window)), 0.1)
    return np.asarray(ink * (1 - 0.35 * strength) + 0.95 * strength * window * (1 - 0.5 * ink), dtype=np.float32)


def _outline(ink: Pixels, strength: float, generator: np.random.Generator) -> Pixels:
    bytes_ = Image.fromarray((ink * 255).astype(np.uint8))
    around = np.asarray(bytes_.filter(ImageFilter.MaxFilter(3)), dtype=np.float32) / np.float32(255)
    return np.asarray(around - strength * ink, dtype=np.float32)


def _noise(ink: Pixels, strength: float, generator: np.random.Generator) -> Pixels:
    noisy = ink + generator.normal(0, 0.7 * strength, size=ink.shape)
    specks = generator.random(ink.shape) < 0.15 * strength
    return np.where(specks, generator.choice([-0.5, 1.5], size=ink.shape), noisy).astype(np.float32)


def _stripes(ink: Pixels, strength: float, generator: np.random.Generator) -> Pixels:
    angle, period = generator.uniform(0, np.pi), generator.uniform(3, 7)
    wave = np.sin(2 * np.pi * (np.cos(angle) * _ROWS + np.sin(angle) * _COLUMNS) / period + generator.uniform(0, 6))
    return np.asarray(ink + 0.7 * strength * wave, dtype=np.float32)


def _dots(ink: Pixels, strength: float, generator: np.random.Generator) -> Pixels:
    """Ink and ground are printed in dots, and the dots of the ground are nearly as bright."""
    period, phase = generator.uniform(2.6, 4.0), generator.uniform(0, 4, size=2)
    dots = np.cos(np.pi * (_ROWS + phase[0]) / period) ** 2 * np.cos(np.pi * (_COLUMNS + phase[1]) / period) ** 2
    kept = generator.random(ink.shape) > 0.25 * strength
    return np.asarray(ink * (1 - strength + strength * dots * kept) + 0.45 * strength * dots * (1 - ink), np.float32)


def _pixelated(ink: Pixels, strength: float, generator: np.random.Generator) -> Pixels:
    side = round(IMAGE_SIZE - (IMAGE_SIZE - 10) * strength)
    small = Image.fromarray(ink).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.NEAREST), dtype=np.float32)


def _occluded(ink: Pixels, strength: float, generator: np.random.Generator) -> Pixels:
    covered = ink.copy()
    for _ in range(3):
        height, width = np.rint(generator.uniform(4, 12, size=2) * strength).astype(int)
        top, left = generator.integers(4, IMAGE_SIZE - 4 - np.array([height, width]))
        covered[top : top + height, left : left + width] = generator.uniform(0, 1)
    return covered


def _low_contrast(ink: Pixels, strength: float, generator: np.random.Generator) -> Pixels:
    slope = _smooth_field(generator, cells=1)
    grain = generator.normal(0, 0.06, size=ink.shape)
    return np.asarray(ink * (1 - 0.75 * strength) + strength * (0.3 * slope + grain), dtype=np.float32)


_FINISHES: Final[dict[str, Finish]] = {
    "photo": _photo,
    "outline": _outline,
    "noise": _noise,
    "stripes": _stripes,
    "dots": _dots,
    "pixelated": _pixelated,
    "occluded": _occluded,
    "low_contrast": _low_contrast,
}

STYLES: Final = ("plain", "rotated", "elastic", *_FINISHES)
"""Names of the styles."""
