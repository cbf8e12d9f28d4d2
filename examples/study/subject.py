"""A zoo that is studied: its models, its sets, and the unlabelled images that methods may learn on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from methods import UNLABELLED
from numpy.typing import NDArray
from outcomes import SPLITS, key_of
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from zoos import zoo

from lwptv_lightning import MergeModule

BATCH = 150


@dataclass(frozen=True)
class Subject:
    """A zoo with its data.

    Args:
        name: Of the zoo.
        module: Base, experts and heads.
        sets: Split to loader name to data set. Both splits have the ID sets, and the test split alone the OOD ones.
        pool: Task to images that are in none of the sets; draw ``d`` is the ``d``-th part of `UNLABELLED` of them.
    """

    name: str
    module: MergeModule
    sets: Mapping[str, Mapping[str, Dataset[object]]]
    pool: Mapping[str, Dataset[object]]
    _prints: dict[str, str] = field(default_factory=dict)

    def loaders(self) -> dict[str, DataLoader[object]]:
        """Return one loader a set, of its validation samples and then its test samples: one pass has them all."""
        return {loader: DataLoader(ConcatDataset(parts), BATCH) for loader, parts in self._parts().items()}

    def split(self, outcomes: Mapping[str, NDArray[np.bool_]]) -> dict[str, NDArray[np.bool_]]:
        """Take apart what `loaders` gave, into ``"<split>:<loader>"``."""
        apart = {}
        for loader, correct in outcomes.items():
            begin = 0
            for split in SPLITS:
                size = len(self.sets[split].get(loader, ()))  # type: ignore[arg-type]
                if size:
                    apart[f"{split}:{loader}"] = correct[begin : begin + size]
                begin += size
        return apart

    def shuffled(self, draw: int, batch: int) -> dict[str, DataLoader[object]]:
        """Return a loader a task that gives the images of a draw in another order each time."""
        part = range(draw * UNLABELLED, (draw + 1) * UNLABELLED)
        loaders = {}
        for number, (task, images) in enumerate(self.pool.items()):
            generator = torch.Generator().manual_seed(1000 * draw + number)
            loaders[f"id/{task}"] = DataLoader(Subset(images, part), batch, shuffle=True, generator=generator)
        return loaders

    def in_order(self, draw: int) -> dict[str, DataLoader[object]]:
        """Return a loader a task that gives the images of a draw once, in their order."""
        part = range(draw * UNLABELLED, (draw + 1) * UNLABELLED)
        return {f"id/{task}": DataLoader(Subset(images, part), UNLABELLED) for task, images in self.pool.items()}

    @property
    def print(self) -> str:
        """What tells these models and data from others."""
        if not self._prints:
            sets = {name: _print_of(ConcatDataset(parts)) for name, parts in self._parts().items()}
            pool = {name: _print_of(images) for name, images in self.pool.items()}
            heads = sorted({_digest(tensor) for tensor in self.module.heads.state_dict().values()})
            sizes = {split: {name: len(data) for name, data in sets.items()} for split, sets in self.sets.items()}  # type: ignore[arg-type]
            self._prints["all"] = key_of(self.module.vectors.fingerprints(), sets, pool, heads, sizes)
        return self._prints["all"]

    def _parts(self) -> dict[str, list[Dataset[object]]]:
        names = dict.fromkeys(name for split in SPLITS for name in self.sets[split])
        return {name: [self.sets[split][name] for split in SPLITS if name in self.sets[split]] for name in names}


def _print_of(images: Dataset[object]) -> str:
    """Return what tells a data set's images and labels."""
    found = hashlib.sha256()
    for image, label in DataLoader(images, 256):
        found.update(image.numpy().tobytes() + label.numpy().tobytes())
    return found.hexdigest()


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def open_subject(name: str, cache: Path, size: int, validation: int, draws: int) -> Subject:
    """Return a zoo of the study.

    Args:
        name: As ``zoos.py`` has it.
        cache: Where its files are, or are built.
        size: Test images of each set.
        validation: Validation images of each ID set.
        draws: How many draws of unlabelled images there are to be.
    """
    built = zoo(name, cache)
    module, tasks = built.module(), tuple(built.experts)
    both = {
        loader: data.dataset for loader, data in built.loaders("validation", validation + draws * UNLABELLED).items()
    }
    held = {f"id/{task}": Subset(both[f"id/{task}"], range(validation)) for task in tasks}
    pool = {task: Subset(both[f"id/{task}"], range(validation, len(both[f"id/{task}"]))) for task in tasks}
    test = {loader: data.dataset for loader, data in built.loaders("test", size).items()}
    return Subject(name, module, {"validation": held, "test": test}, pool)
