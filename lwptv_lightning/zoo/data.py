"""How a sample of a set is drawn, and the datasets and loaders made of such samples.

A rendered sample is a pure function of ``(seed, set, split, index)``. Nothing is stored but the handwritten
digits, no global random state is read, and two splits are different draws.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lwptv_lightning.zoo.digits import handwritten_digits
from lwptv_lightning.zoo.domains import (
    DIGITS,
    DOMAINS,
    ID_SETS,
    OOD_SETS,
    Domain,
    Split,
    loader_name,
    set_alphabet,
    splits,
)
from lwptv_lightning.zoo.glyphs import TASK_FACES, characters, faces_with, glyph_mask
from lwptv_lightning.zoo.styles import IMAGE_SIZE, Pixels, render

Draw = Callable[[int], tuple[Pixels, int]]
"""From a sample's index to its image ``(32, 32)`` and its label."""


def sample_generator(seed: int, *place: str | int) -> np.random.Generator:
    """Return the generator of one sample, the same in every process and on every machine.

    Args:
        seed: Non-negative seed shared by many samples.
        place: What tells this sample from the others, for example set, split and index.

    Returns:
        A fresh generator.

    Example:
        >>> first, again, other = (sample_generator(0, "greek_noise", index).random() for index in (3, 3, 4))
        >>> first == again, first == other
        (True, False)
    """
    # Python's own hash of a string changes from process to process; a checksum does not.
    return np.random.default_rng([seed, *(zlib.crc32(str(part).encode()) for part in place)])


def draw(name: str, split: str, index: int, *, seed: int = 0) -> tuple[Pixels, int]:
    """Render one sample of a rendered set.

    Args:
        name: A name in :data:`ID_SETS` or :data:`OOD_SETS` other than ``"digits"``.
        split: Name of the split; different splits are different draws.
        index: Position in the split; classes take turns, so that any stretch is balanced.
        seed: Non-negative; the published sets have seed 0.

    Returns:
        The image ``(32, 32)`` and its label.

    Example:
        >>> image, label = draw("lower_rotated", "test", 3)
        >>> image.shape, label
        ((32, 32), 3)
    """
    return draw_domain(DOMAINS[name], name, split, index, seed=seed)


def draw_domain(domain: Domain, name: str, split: str, index: int, *, seed: int = 0) -> tuple[Pixels, int]:
    """Render one sample of any alphabet in any style.

    Args:
        domain: What is seen.
        name: Of the set; like the split, it tells its draws from others.
        split: See `draw`.
        index: See `draw`.
        seed: See `draw`.

    Returns:
        The image ``(32, 32)`` and its label.

    Example:
        >>> image, label = draw_domain(Domain("upper", "stripes", 0.8), "upper_stripes", "test", 27)
        >>> image.shape, label
        ((32, 32), 1)
    """
    classes = characters(domain.alphabet)
    label = index % len(classes)
    generator = sample_generator(seed, name, split, index)
    faces = faces_with(classes[label], TASK_FACES)
    mask = glyph_mask(classes[label], faces[generator.integers(len(faces))])
    return render(mask, domain.style, domain.strength, generator), label


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Images and labels held in memory.

    Args:
        images: ``(N, 1, 32, 32)`` float32.
        labels: ``(N,)`` int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def dataset(name: str, split: Split = "test", size: int = 150) -> LabelledImages:
    """Return one set of the zoo; rendered once per process.

    Args:
        name: A name in :data:`ID_SETS` or :data:`OOD_SETS`.
        split: ``"train"``, ``"validation"`` or ``"test"``; ``"digits"`` has a test split only.
        size: Number of samples, at least 1. ``"digits"`` has 300 at most.

    Returns:
        A map-style dataset of ``(image (1, 32, 32) float32, label int)``.

    Raises:
        UnknownNameError: If there is no such set; it is a ``KeyError``.
        ValueError: If the set has no such split, or ``size`` is below 1.

    Example:
        >>> images = dataset("greek_noise", size=4)
        >>> image, label = images[2]
        >>> len(images), tuple(image.shape), label
        (4, (1, 32, 32), 2)
    """
    set_alphabet(name)
    if split not in splits(name):
        raise ValueError(f"split: expected one of {splits(name)} for the set {name!r}, got {split!r}.")
    if size < 1:
        raise ValueError(f"size: expected at least 1 sample, got {size}.")
    return _load(name, split, size)


def loaders(
    split: Split = "test", size: int = 150, batch_size: int = 250, sets: Iterable[str] | None = None
) -> dict[str, DataLoader[tuple[Tensor, int]]]:
    """Return a loader per set, in a fixed order and not shuffled.

    Args:
        split: See :func:`dataset`.
        size: Samples per set.
        batch_size: Samples per batch.
        sets: Names of sets; all that have the split, by default.

    Returns:
        What :func:`loader_name` calls each set -> loader of ``(images (B, 1, 32, 32), labels (B,))``.

    Raises:
        UnknownNameError: If there is no set of a given name; it is a ``KeyError``.
        ValueError: As :func:`dataset`.

    Example:
        >>> list(loaders(size=2, sets=["greek_noise", "digits"]))
        ['id/greek_noise', 'ood/far/digits']
    """
    if sets is None:
        sets = [name for name in ID_SETS + OOD_SETS if split in splits(name)] or ID_SETS
    return {loader_name(name): DataLoader(dataset(name, split, size), batch_size) for name in sets}


@lru_cache(maxsize=64)
def _load(name: str, split: str, size: int) -> LabelledImages:
    if name == DIGITS:
        images, labels = (array[:size] for array in handwritten_digits())
        return LabelledImages(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels))
    return rendered(partial(draw, name, split), size)


def rendered(draw_sample: Draw, size: int) -> LabelledImages:
    """Render the first samples of a set.

    Args:
        draw_sample: Renders the sample at an index: its image ``(32, 32)`` and its label.
        size: Number of samples.

    Example:
        >>> len(rendered(partial(draw, "greek_noise", "test"), size=3))
        3
    """
    images = np.empty((size, 1, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    labels = np.empty(size, dtype=np.int64)
    for index in range(size):
        images[index, 0], labels[index] = draw_sample(index)
    return LabelledImages(torch.from_numpy(images), torch.from_numpy(labels))
