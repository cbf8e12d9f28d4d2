"""The characters of the zoo, the typefaces they are drawn in, and their masks.

A mask is the bare character: white on black, cropped, fitted into a square and slightly softened. Everything
that makes an image out of it (placement, texture, damage) is the business of
:mod:`lwptv_lightning.zoo.styles`.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from lwptv_lightning.registry import UnknownNameError

MASK_SIZE: Final = 64
"""Height and width of a mask in pixels."""

_INK_SIZE: Final = 46  # the longer side of the character inside the mask; the rest is room to move in
_FONT_SIZE: Final = 96  # drawn larger than needed, then reduced, so that thin strokes stay smooth

# Characters that look alike are listed once: a Greek capital Alpha would only be a second name of the Latin A.
ALPHABETS: Final[dict[str, str]] = {
    "digits": "0123456789",
    "upper": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "lower": "abdefghijkmnpqrtuy",
    "greek": "ΓΔΛΞΣΨΩαβγδεζηθλμξπρστφχω",
    "cyrillic": "БДЖИЙЛЦЧШЩЪЫЬЭЮЯЂЉЊЄ",
    "armenian": "ԱԲԳԴԵԶԷԸԹԺԻԽԾԿՁՂՃՄՆՇՈՉՊՋՌՎՏՐՑՒՓՔՖ",
    "georgian": "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ",
    "maths": "∀∂∃∅∇∈∋∏√∝∞∠∩∪∫∮≈≠≡≤≥⊂⊃⊆⊕⊗⊥",  # noqa: RUF001
    "arrows": "←↑→↓↔↕↖↗↘↙⇐⇑⇒⇓⇔⇕↦↩↪↻",
    "symbols": "■□▲△▼◆◇○●★☆♠♣♥♪♫♀♂♭♮♯☺☼",
}
"""Alphabet name -> its classes, one character each; a label is a position in this string."""

PRETRAINING_FACES: Final = (
    "DejaVuSans",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBolIta",
    "cmr10",
    "cmss10",
)
"""Typefaces that only pre-training sees."""

TASK_FACES: Final = (
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-BoldItalic",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmb10",
    "cmti10",
    "cmtt10",
)
"""Typefaces of the ID and OOD sets; disjoint from :data:`PRETRAINING_FACES`."""


def characters(alphabet: str) -> str:
    """Return the classes of an alphabet, in label order.

    Args:
        alphabet: A key of :data:`ALPHABETS`.

    Returns:
        One character per class.

    Raises:
        UnknownNameError: If there is no such alphabet.

    Example:
        >>> characters("digits")
        '0123456789'
    """
    if alphabet not in ALPHABETS:
        raise UnknownNameError("alphabet", alphabet, ALPHABETS)
    return ALPHABETS[alphabet]


def class_rows(alphabet: str) -> range:
    """Return where an alphabet's classes lie among all classes of the zoo.

    Args:
        alphabet: A key of :data:`ALPHABETS`.

    Returns:
        Consecutive row numbers, one per class, in label order.

    Raises:
        UnknownNameError: If there is no such alphabet.

    Example:
        >>> class_rows("upper")
        range(10, 36)
    """
    size = len(characters(alphabet))
    names = list(ALPHABETS)
    start = sum(len(ALPHABETS[name]) for name in names[: names.index(alphabet)])
    return range(start, start + size)


@cache
def faces_with(character: str, faces: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of ``faces`` that have a drawing of ``character``, so that no missing-glyph box is drawn.

    Args:
        character: One character.
        faces: Names of typefaces that matplotlib ships.

    Returns:
        The names that cover the character, in the given order.

    Raises:
        ValueError: If none does.

    Example:
        >>> faces_with("Ա", ("DejaVuSans", "cmr10"))
        ('DejaVuSans',)
    """
    covering = tuple(face for face in faces if ord(character) in _charmap(face))
    if not covering:
        name = unicodedata.name(character, "unnamed")
        raise ValueError(f"character: expected one that a face in {faces} has, got {character!r} ({name})")
    return covering


@cache
def glyph_mask(character: str, face: str) -> NDArray[np.float32]:
    """Draw one character.

    Args:
        character: One character that the face has (see :func:`faces_with`).
        face: Name of a typeface that matplotlib ships.

    Returns:
        ``(64, 64)``, read-only, ink 1 on ground 0, centred; the longer side of the ink spans 46 pixels.

    Example:
        >>> mask = glyph_mask("A", "cmr10")
        >>> mask.shape, bool(mask.max() > 0.9)
        ((64, 64), True)
    """
    # The basic layout is asked for because Pillow's other one may or may not be installed and differs slightly.
    font = ImageFont.truetype(str(_font_file(face)), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(character))
    drawing = Image.new("L", (max(right - left, 1), max(bottom - top, 1)))
    ImageDraw.Draw(drawing).text((-left, -top), character, fill=255, font=font)
    drawing = drawing.crop(drawing.getbbox())
    shrink = _INK_SIZE / max(drawing.size)
    width, height = (max(round(side * shrink), 1) for side in drawing.size)
    mask = Image.new("L", (MASK_SIZE, MASK_SIZE))
    fitted = drawing.resize((width, height), Image.Resampling.BICUBIC)
    mask.paste(fitted, ((MASK_SIZE - width) // 2, (MASK_SIZE - height) // 2))
    # An image is sampled at half this resolution: the blur keeps hairlines from falling between the samples.
    pixels = np.asarray(mask.filter(ImageFilter.GaussianBlur(0.8)), dtype=np.float32) / np.float32(255)
    pixels.setflags(write=False)
    return pixels


def _font_file(face: str) -> Path:
    return Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")


@cache
def _charmap(face: str) -> frozenset[int]:
    return frozenset(FT2Font(str(_font_file(face))).get_charmap())
