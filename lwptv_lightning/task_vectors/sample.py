"""A sample of fine-tuned weights beside their base's, by which a merge is judged before it is made."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch

from lwptv_lightning.checkpoints import Checkpoint, CheckpointError
from lwptv_lightning.registry import printable
from lwptv_lightning.task_vectors.integers import differing, told_of
from lwptv_lightning.task_vectors.judgement import TensorFigures, judge, measure, spread, whole_as_difference

_LEAST_SAMPLE = 1024
"""Fewer elements of a model tell nothing beyond chance to one who did not ask for a check."""
_SAMPLED_TENSORS = 512


class Sample:
    """A sample of a base and T experts, which takes a time that hardly depends on the size of the model.

    An expert is read in a tensor where that is first asked for, and then known.

    Args:
        base: The base.
        experts: Task name to fine-tuned weights.
        names: The tensors that are merged.
        copied: The tensors that are the base's in a merge.
    """

    def __init__(
        self, base: Checkpoint, experts: Mapping[str, Checkpoint], names: Sequence[str], copied: Sequence[str]
    ) -> None:
        self._base = base
        self._experts = dict(experts)
        self._copied = copied
        self._names = names[:: -(-len(names) // _SAMPLED_TENSORS) or 1]  # some of many, evenly
        self._figures: dict[str, TensorFigures] = {}
        self._known: set[tuple[str, int]] = set()
        self._differing: dict[str, str] = {}
        self._told: dict[object, tuple[str, ...]] = {}

    def doubts(self, kept: Mapping[str, Sequence[bool]] | None = None) -> tuple[str, ...]:
        """Return what speaks against each expert where it is kept, tensor name to T; by default everywhere.

        Models of few elements agree or not by chance: of these it is told alone that weights are but a difference.
        """
        key = None if kept is None else tuple((name, tuple(row)) for name, row in kept.items())
        if key not in self._told:
            self._told[key] = self._judged(kept)
        return self._told[key]

    def _judged(self, kept: Mapping[str, Sequence[bool]] | None) -> tuple[str, ...]:
        asked = self._asked(range(len(self._experts)), kept)
        figures = self._measured(asked)
        told = []
        for task, names in enumerate(asked):
            found = judge({name: figures[name] for name in names}, task)
            enough = sum(self._base.headers[name].numel for name in names) >= _LEAST_SAMPLE
            told.append(found.told if enough else found.difference_told)
        used = [kept is None or any(row[task] for row in kept.values()) for task in range(len(self._experts))]
        unmerged = [self._unmerged(task) if use else "" for task, use in zip(self._experts, used, strict=True)]
        return (*self._said(told), *self._said(unmerged))

    def require_differences(self, kept: Mapping[str, Sequence[bool]] | None = None) -> None:
        """Raise a `CheckpointError` where what a file calls a task vector is whole weights, as far as it is kept."""
        sums = {task: expert for task, expert in enumerate(self._experts.values()) if expert.is_sum}
        foreign = {name for expert in sums.values() for name in expert.foreign}
        asked = [[name for name in names if name not in foreign] for names in self._asked(sums, kept)]
        figures = self._measured(asked)
        for task, (name, expert) in enumerate(self._experts.items()):
            if wrong := whole_as_difference({each: figures[each] for each in asked[task]}, task):
                raise CheckpointError(f"task {name!r} ({expert.source}): {wrong}")

    def _asked(self, tasks: Collection[int], kept: Mapping[str, Sequence[bool]] | None) -> list[list[str]]:
        """Return, for each of T experts, the tensors to judge it by: those that it keeps, of some of the tasks."""
        return [
            [name for name in self._names if task in tasks and (kept is None or kept[name][task])]
            for task in range(len(self._experts))
        ]

    def _measured(self, asked: Sequence[Collection[str]]) -> Mapping[str, TensorFigures]:
        """Return figures in which the inner products of the base with what is asked for are measured."""
        wanted = {(name, task) for task, names in enumerate(asked) for name in names} - self._known
        for name in self._names:
            new = [(name, task) in wanted for task in range(len(asked))]
            if any(new):
                experts = [each if is_new else None for each, is_new in zip(self._experts.values(), new, strict=True)]
                found = measure(name, self._base, experts, [spread(self._base.headers[name].numel)])
                known = self._figures.get(name, found)
                rows = torch.tensor([False, *new])
                sums = torch.where(rows, found.sums, known.sums)
                gram = torch.where(rows[:, None] | rows, found.gram, known.gram)
                self._figures[name] = TensorFigures(found.elements, sums, gram)
        self._known |= wanted
        return self._figures

    def _unmerged(self, task: str) -> str:
        if task not in self._differing:
            self._differing[task] = told_of([*differing(self._copied, self._base, self._experts[task])])
        return self._differing[task]

    def _said(self, told: Iterable[str]) -> tuple[str, ...]:
        """Return what is told of each task, if anything, with its name."""
        said = zip(self._experts.items(), told, strict=True)
        return tuple(f"task {task!r} ({printable(expert.source)}): {words}" for (task, expert), words in said if words)
