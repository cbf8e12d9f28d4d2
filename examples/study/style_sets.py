"""Sets of one alphabet in many styles: a shift of the domain alone, where all sets have the same classes."""

from functools import lru_cache, partial
from pathlib import Path
from typing import get_args

from torch import nn
from torch.utils.data import DataLoader

from lwptv_lightning import zoo
from lwptv_lightning.registry import require_known, require_whole
from lwptv_lightning.zoo.data import LabelledImages, draw_domain, rendered
from lwptv_lightning.zoo.domains import Domain, Split
from lwptv_lightning.zoo.styles import Pixels

ALPHABET = "upper"
TASKS = {"photo": 1.0, "noise": 1.0, "elastic": 1.0, "rotated": 1.0, "dots": 0.95}
"""Style of each task -> its strength, as in the zoo's in-domain sets."""
UNSEEN = {"pixelated": 1.0, "outline": 0.65, "low_contrast": 0.8, "occluded": 0.7, "stripes": 1.0}
"""Styles on which nothing is tuned, as in the zoo's far sets; stronger where the base knew every character."""


def draw(style: str, split: str, index: int, *, seed: int = 0) -> tuple[Pixels, int]:
    """Render one sample of a style; the sets that are measured have seed 0."""
    domain = Domain(ALPHABET, style, (TASKS | UNSEEN)[style])
    return draw_domain(domain, f"styles_{style}", split, index, seed=seed)


def loaders(split: str = "test", size: int = 150) -> dict[str, DataLoader]:
    """Return `id/<style>` and `ood/unseen/<style>` -> loader; the splits are those of the zoo."""
    require_known("split", split, get_args(Split))
    require_whole("size", size, 1)
    names = {f"id/{style}": style for style in TASKS} | {f"ood/unseen/{style}": style for style in UNSEEN}
    return {name: DataLoader(_images(style, split, size), batch_size=250) for name, style in names.items()}


def heads(root: Path | None = None) -> dict[str, nn.Module]:
    """Return the zoo's head of the alphabet for each set, a copy of its own."""
    return {style: zoo.heads(root)["upper_photo"] for style in TASKS | UNSEEN}


@lru_cache(maxsize=64)
def _images(style: str, split: str, size: int) -> LabelledImages:
    return rendered(partial(draw, style, split), size)
