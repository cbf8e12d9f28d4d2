"""Which samples several models got right, of a loader that several processes may share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.evaluation import Replicas, all_the_same, fingerprints, require_batches, share_of
from lwptv_lightning.search.digests import digest_of


@dataclass(frozen=True)
class _Batch:
    """A batch's place among all of its loader, what it is of, and what each model got right ``(n, models)``."""

    number: int
    positions: Sequence[Any] | None
    prints: Tensor
    correct: Tensor


@dataclass
class Outcomes:
    """Collects, on each process, which samples of a loader the models of one pass got right.

    Args:
        name: The loader's name.
        loader: The loader as it is evaluated.
        exact: Whether what is no tensor, such as texts, tells samples apart, too.
    """

    name: str
    loader: Any
    exact: bool = False
    _batches: list[_Batch] = field(default_factory=list)

    def add(self, batch_idx: int, batch: Any, correct: Tensor) -> None:
        """Add a batch with outcomes ``(models, n)``, unless it is there to fill up.

        Raises:
            TypeError: It is to be exact, and holds what cannot be told from others.
        """
        share, number = share_of(self.loader), batch_idx
        positions: list[Any] | None = None
        if share is not None:
            placed = share.number(batch_idx)
            if placed is None:
                return
            number, positions = placed, share.positions(placed)
        prints = fingerprints(batch)
        if self.exact:
            prints += _prints_of_others(batch, len(prints))
        self._batches.append(_Batch(number, positions, prints, correct.T.cpu()))

    def together(self, replicas: Replicas) -> tuple[Tensor, Tensor]:
        """Return outcomes ``(models, N)`` and fingerprints of inputs and targets ``(N,)``, over all processes.

        They are in the order of the data set where its samples are known, otherwise in that of the loader.
        """
        found = replicas.exchange(self._batches)
        every = list(chain.from_iterable(found))
        if share_of(self.loader) is None:
            seen = [torch.cat([batch.prints for batch in own] or [torch.zeros(0).long()]) for own in found]
            require_batches(self.name, list(map(len, found)), seen if len(found) > 1 else [])
            batches = found[0] if len(found) > 1 and all_the_same(self.name, seen) else every
        else:
            batches = sorted(every, key=lambda batch: batch.number)
        correct = torch.cat([batch.correct for batch in batches])
        prints = torch.cat([batch.prints for batch in batches])
        order = _order(batches, len(prints) == len(correct))
        return correct[order].T, prints[order] if len(prints) == len(correct) else prints


def _order(batches: Sequence[_Batch], placed: bool) -> Tensor:
    """Return the order of the data set, where each sample of each batch has an index in it."""
    size = sum(len(batch.correct) for batch in batches)
    known = placed and all(
        batch.positions is not None
        and len(batch.positions) == len(batch.correct)
        and all(isinstance(position, int) for position in batch.positions)
        for batch in batches
    )
    if not known:
        return torch.arange(size)
    indices = torch.tensor([position for batch in batches for position in batch.positions or ()])
    return indices.argsort(stable=True)


def _prints_of_others(batch: Any, size: int) -> Tensor:
    """Return a whole number for each sample, ``(size,)``, of what is no tensor in a batch."""
    total = torch.zeros(size, dtype=torch.int64)
    for place, value in enumerate(_others(batch, size), start=1):
        each = value if isinstance(value, list) else [value] * size
        numbers = [int(digest_of(place, item)[:15], 16) for item in each]
        total += torch.tensor(numbers, dtype=torch.int64)
    return total


def _others(value: Any, size: int) -> Iterator[Any]:
    """Yield what is no tensor: a list of one for each sample, or what all samples have."""
    if isinstance(value, Tensor):
        return
    if isinstance(value, list | tuple) and len(value) == size and all(isinstance(item, str | bytes) for item in value):
        yield list(value)
    elif isinstance(value, Mapping) or (hasattr(value, "keys") and hasattr(value, "__getitem__")):
        for key in value.keys():  # noqa: SIM118
            yield from _others(value[key], size)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _others(getattr(value, field.name), size)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _others(item, size)
    else:
        yield digest_of(value)
