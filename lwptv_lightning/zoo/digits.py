"""Real handwriting that no model of the zoo has seen: 300 digits of the UCI optical recognition set.

They are stored in the package. :func:`write_digits` made the file, and is the only place that needs scikit-learn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lwptv_lightning.files import Stage
from lwptv_lightning.zoo.styles import IMAGE_SIZE, Pixels, standardise

ASSETS: Final = Path(__file__).with_name("assets")
"""The folder of the packaged files."""

DIGITS_FILE: Final = "digits.npz"

_PER_CLASS: Final = 30
_INK_SIZE: Final = 24  # about as tall in the image as a rendered character


def handwritten_digits() -> tuple[Pixels, NDArray[np.int64]]:
    """Return the handwritten digits as images like the rendered ones.

    Returns:
        Images ``(300, 32, 32)`` with zero mean and unit variance, and labels ``(300,)``; classes take turns.

    Example:
        >>> images, labels = handwritten_digits()
        >>> images.shape, labels[:3].tolist()
        ((300, 32, 32), [0, 1, 2])
    """
    with np.load(ASSETS / DIGITS_FILE) as stored:
        drawings, labels = stored["images"], stored["labels"]
    return np.stack([_enlarge(drawing) for drawing in drawings]), labels.astype(np.int64)


def write_digits(path: Path) -> None:
    """Draw 30 digits per class from scikit-learn's copy and store them.

    Args:
        path: The ``.npz`` file to write: ``images (300, 8, 8)`` with values 0 to 16, ``labels (300,)``, both uint8.

    Raises:
        ImportError: If scikit-learn is not installed.

    Example:
        >>> write_digits(Path("digits.npz"))  # doctest: +SKIP
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("write_digits needs scikit-learn: pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    generator = np.random.default_rng(0)
    chosen = np.stack([generator.choice(np.flatnonzero(labels == d), _PER_CLASS, replace=False) for d in range(10)])
    order = chosen.T.ravel()
    arrays = {"images": images[order].reshape(-1, 8, 8).astype(np.uint8), "labels": labels[order].astype(np.uint8)}
    with Stage(path) as stage:
        np.savez_compressed(stage.folder / "digits.npz", **arrays)
        stage.install("digits.npz", path)


def _enlarge(drawing: NDArray[np.uint8]) -> Pixels:
    """``(8, 8)`` in 0 to 16 -> ``(32, 32)``, smooth and centred, with a blank border."""
    small = Image.fromarray(drawing.astype(np.float32) / 16)
    smooth = np.asarray(small.resize((_INK_SIZE, _INK_SIZE), Image.Resampling.BICUBIC), dtype=np.float32)
    border = (IMAGE_SIZE - _INK_SIZE) // 2
    return standardise(np.pad(np.clip(smooth, 0, 1), border))
