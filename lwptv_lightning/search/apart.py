"""Whether validation and test loaders have samples in common, told without reading one."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from lwptv_lightning.evaluation import given_set


def require_apart(validation: Mapping[str, Any], test: Mapping[str, Any]) -> None:
    """Raise `ValueError` where a validation set has samples of a test set: what chose must not be reported.

    It is told of loaders of the same data set, or parts of it, of the same tensors, and of image folders with the same
    files. Nothing is counted or read.

    Example:
        >>> data = TensorDataset()
        >>> halves = [DataLoader(Subset(data, range(first, first + 5))) for first in (0, 5)]
        >>> require_apart({"id/a": halves[0]}, {"id/a": halves[1]})
    """
    ours = {name: _taken(loader) for name, loader in validation.items()}
    theirs = {name: _taken(loader) for name, loader in test.items()}
    for name, own in ours.items():
        for other, reported in theirs.items():
            if validation[name] is test[other]:
                shared: int | None = 0
            elif own is None or reported is None:
                continue
            else:
                shared = own.shared(reported)
            if shared is not None:
                told = f"have {shared} samples in common" if shared else "are the same samples"
                raise ValueError(
                    f"validation {name!r} and test {other!r} {told}: what is chosen by must not be reported. Give "
                    "other ones, or no validation sets, so that each ID set is divided in two."
                )


@dataclass(frozen=True)
class _Taken:
    """Which samples of which data set a loader takes; all of them where there are no places."""

    data: Any
    places: frozenset[int] | None

    def shared(self, other: _Taken) -> int | None:
        """Return how many samples both have, 0 where one has all of the same data; ``None`` for none."""
        if _identity(self.data) == _identity(other.data):
            if self.places is None or other.places is None:
                return 0 if self.places is other.places else len(self.places or other.places or ()) or None
            return len(self.places & other.places) or None
        ours, theirs = self._files(), other._files()
        shared = len(ours & theirs)
        return None if not shared else 0 if ours == theirs else shared

    def _files(self) -> frozenset[str]:
        """Return the files of a folder of images that are taken."""
        from torchvision.datasets import DatasetFolder

        if not isinstance(self.data, DatasetFolder):
            return frozenset()
        samples = self.data.samples
        places = range(len(samples)) if self.places is None else self.places
        return frozenset(os.path.realpath(samples[place][0]) for place in places if place < len(samples))


def _taken(loader: Any) -> _Taken | None:
    """Return what a loader takes; ``None`` where nobody knows."""
    if not isinstance(loader, DataLoader) or type(loader.batch_sampler) not in (BatchSampler, type(None)):
        return None
    sampler: Any = loader.sampler
    places: Sequence[int] | None = None
    if type(sampler) is SubsetRandomSampler:
        places = list(sampler.indices)
    elif type(sampler) not in (SequentialSampler, RandomSampler):
        return None
    data = given_set(loader.dataset)
    while type(data) is Subset:
        indices = data.indices
        places = list(indices) if places is None else [indices[place] for place in places]
        data = given_set(data.dataset)
    return _Taken(data, None if places is None else frozenset(int(place) for place in places))


def _identity(data: Any) -> Hashable:
    """Return what is equal for two data sets with the same samples at the same places."""
    if type(data) is TensorDataset:
        return tuple(map(id, data.tensors)) or id(data)
    plain = isinstance(getattr(data, "root", None), str | Path)
    if plain and type(data).__module__.startswith("torchvision.datasets.") and not hasattr(data, "samples"):
        said = sorted((name, str(value)) for name, value in vars(data).items() if isinstance(value, _PLAIN))
        return (type(data), *said)
    return id(data)


_PLAIN = (str, bool, int, float, Path)
