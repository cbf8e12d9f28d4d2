"""Apply a rule to pruned task vectors: in blocks, task by task or whole tensors, as the rule must see them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.engine import PrunedTaskVectors, keep_freed_memory, read_blocks, sum_by_tensor
from lwptv_lightning.functional import per_row, sum_tasks
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.rules import DataStatistics, MergeContext
from lwptv_lightning.task_vectors import Stack, part, whole


@dataclass(frozen=True)
class Piece:
    """Merged elements of one tensor.

    Attributes:
        name: The tensor's name.
        elements: Which elements of the flattened tensor.
        base: The base's elements there, ``(n,)``, in their own dtype; not to be written to.
        merged: The merged task vector there, ``(n,)``; ``None`` where every task is pruned.
    """

    name: str
    elements: slice
    base: Tensor
    merged: Tensor | None


class Combiner:
    """Applies a recipe's rule to one tensor after the other, after the rule's survey of all of them.

    Args:
        recipe: Names the rule, and what the mask acts on.
        pruned: The task vectors.
        statistics: What was collected on data, for rules that need it.
        task: The task whose own model is wanted.
    """

    def __init__(
        self, recipe: MergeRecipe, pruned: PrunedTaskVectors, statistics: DataStatistics | None, task: str | None
    ) -> None:
        self._rule = recipe.rule
        self._pruned = pruned
        self._on_parts = recipe.prune_on == "parts"
        # The rule makes its parts of the whole task vectors; the mask acts on the parts.
        self._seen = (
            PrunedTaskVectors(pruned.vectors, pruned.names, pruned.device, pruned.dtype) if self._on_parts else pruned
        )
        self._seen.share = pruned.share
        self._statistics = statistics
        self._task = task
        self.averaged = batch_norm_statistics(pruned.names)
        self._survey = recipe.rule.survey(self._seen, statistics)

    def pieces(self, names: Iterable[str]) -> Iterator[Piece]:
        """Yield the merged task vectors of some tensors, each from its first piece to its last."""

        def open_stack(name: str) -> Stack:
            return (self._pruned if name in self.averaged else self._seen).open_stack(name)

        if self._rule.unit == "element":
            for block in read_blocks(names, open_stack, self._pruned.dtype, self._pruned.device):
                elements = slice(block.start, block.start + len(block.base))
                yield Piece(block.name, elements, block.base, self._combine(block.name, block.tau, elements))
            return
        keep_freed_memory()
        for name in names:
            stack = open_stack(name)
            base = stack.sources(slice(None))[0]
            yield Piece(name, slice(0, len(base)), base, self._combine_whole(name, stack))

    def published_alpha(self) -> float:
        """Return LiNeS' coefficient of the first block, ``(|sum_t tau_t|_1 / |merged|_1) / T``; 1 for a zero model."""

        def magnitudes(piece: Piece) -> Tensor:
            if piece.merged is None:
                return torch.zeros(2, dtype=torch.float64, device=self._pruned.device)
            summed = sum_tasks(part(self._pruned.open_stack(piece.name), piece.elements))
            return torch.stack([tau.abs().sum(dtype=torch.float64) for tau in (summed, piece.merged)])

        own = sum_by_tensor((piece.name, magnitudes(piece)) for piece in self.pieces(self._pruned.own_names))
        found = self._pruned.share.join(own, self._pruned.names).values()
        summed, combined = sum(found, torch.zeros(2, dtype=torch.float64)).tolist()
        return summed / combined / len(self._pruned.tasks) if combined else 1.0

    def _combine_whole(self, name: str, stack: Stack) -> Tensor | None:
        """Return the merged task vector of a whole tensor, flattened."""
        kept = self._pruned.kept(name).nonzero().flatten().tolist()
        if not kept:  # then the stack need not be made either
            return None
        if self._rule.unit == "task" and name not in self.averaged:
            return self._sum_of_tasks(name, stack, kept).flatten()
        merged = self._combine(name, whole(stack))
        return None if merged is None else merged.flatten()

    def _combine(self, name: str, tau: Tensor, elements: slice | None = None) -> Tensor | None:
        """Return the merged task vector of a whole tensor, ``(T, *shape) -> (*shape)``, or of some elements of it."""
        kept = self._pruned.kept(name)
        if not kept.any():
            return None
        if name in self.averaged:
            return sum_tasks(tau).div_(len(kept))
        found, start = self._statistics_of(name, elements), 0 if elements is None else elements.start
        context = MergeContext(name, self._pruned.tasks, self._survey, found, start, self._task)
        if not self._on_parts:
            return self._rule.combine(tau, context)
        parts = self._rule.parts(tau, context)
        return sum_tasks(torch.where(per_row(kept, parts).bool(), parts, 0))

    def _sum_of_tasks(self, name: str, stack: Stack, kept: list[int]) -> Tensor:
        """Add up the parts of the tasks that are kept, one by one; the part of a pruned one is zero."""

        def made_of(task: int) -> Tensor:
            context = MergeContext(name, self._pruned.tasks[task : task + 1], self._survey)
            return self._rule.parts(stack.task(task), context)[0]

        total = made_of(kept[0])
        for task in kept[1:]:
            total += made_of(task)
        return total

    def _statistics_of(self, name: str, elements: slice | None) -> Tensor | None:
        """Return a tensor's statistics of all tasks, ``(T, ...)``, or None where a task has none.

        Statistics of a layer's inputs may stand under the name of its module or of its weight.
        """
        if self._statistics is None:
            return None
        for key in (name, name.removesuffix(".weight")):
            if all(key in self._statistics[task] for task in self._pruned.tasks):
                found = [self._statistics[task][key] for task in self._pruned.tasks]
                return torch.stack(found if elements is None else [values.reshape(-1)[elements] for values in found])
        return None


def batch_norm_statistics(names: Iterable[str]) -> set[str]:
    """Return the running means and variances of batch normalisation among the names of tensors.

    They are no weights: a merge averages them over the tasks, whatever the rule and its scale, a pruned task counting
    with the base's. `lwptv_lightning.callbacks.RecalibrateBatchNorm` measures them anew on data.

    Args:
        names: State-dict names.

    Returns:
        The names that end in ``running_mean`` or ``running_var`` and have the other beside them.

    Example:
        >>> sorted(batch_norm_statistics(["bn.weight", "bn.running_mean", "bn.running_var", "running_mean"]))
        ['bn.running_mean', 'bn.running_var']
    """
    known = set(names)
    return {
        name
        for name in known
        for own, other in (("running_mean", "running_var"), ("running_var", "running_mean"))
        if name.rpartition(".")[2] == own and name.removesuffix(own) + other in known
    }
