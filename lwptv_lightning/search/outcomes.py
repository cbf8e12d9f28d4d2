"""Which samples several models got right, of a loader that several processes may share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.evaluation import Replicas, all_the_same, fingerprints, require_batches, share_of


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
    """

    name: str
    loader: Any
    _batches: list[_Batch] = field(default_factory=list)

    def add(self, batch_idx: int, batch: Any, correct: Tensor) -> None:
        """Add a batch with outcomes ``(models, n)``, unless it is there to fill up."""
        share, number = share_of(self.loader), batch_idx
        positions: list[Any] | None = None
        if share is not None:
            placed = share.number(batch_idx)
            if placed is None:
                return
            number, positions = placed, share.positions(placed)
        self._batches.append(_Batch(number, positions, fingerprints(batch), correct.T.cpu()))

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
