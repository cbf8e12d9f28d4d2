"""Apply rules to task vectors: in blocks, task by task or whole tensors, as each rule must see them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.engine import Stream, keep_freed_memory, sum_by_tensor
from lwptv_lightning.functional import per_row, sum_tasks
from lwptv_lightning.merging.precision import in_dtype
from lwptv_lightning.registry import natural_order
from lwptv_lightning.rules import MergeContext, MergeRule
from lwptv_lightning.task_vectors import part, whole


@dataclass(frozen=True, kw_only=True)
class Job:
    """How one tensor is merged.

    Attributes:
        rule: Combines the tensor's task vectors.
        stream: The task vectors as the rule sees them.
        kept: Which tasks are not pruned here, ``(T,)`` bool.
        survey: What the rule knows of the whole model.
        scale: The coefficient of the merged task vector.
        owner: The number of the process that merges the tensor.
        on_parts: Whether the mask acts on what the rule makes of each task.
        task: The task whose own model is wanted.
        least: The least value that the merged tensor may have.
    """

    rule: MergeRule[Any]
    stream: Stream
    kept: Tensor
    survey: Any = None
    scale: float = 1.0
    owner: int = 0
    on_parts: bool = False
    task: str | None = None
    least: float | None = None


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

    def added(self, job: Job) -> Tensor:
        """Return the merged model's elements, ``(n,)`` in the base's dtype; not to be written to.

        Raises:
            ValueError: They overflow that dtype.
        """
        if self.merged is None:
            return self.base
        # In float64 for a base in float64, whatever the rule computes in: what the rule leaves alone keeps its bits.
        dtype = torch.float64 if self.base.dtype == torch.float64 else self.merged.dtype
        total = self.base.to(self.merged.device, dtype, copy=True).add_(self.merged, alpha=job.scale)
        return in_dtype(self.name, total if job.least is None else total.clamp_(min=job.least), self.base.dtype)


def merged_pieces(jobs: Mapping[str, Job]) -> Iterator[Piece]:
    """Merge tensors one after the other, each from its first piece to its last."""

    def way(name: str) -> tuple[bool, int]:
        job = jobs[name]
        return job.rule.unit == "element" and bool(job.kept.any()), id(job.stream)

    for (in_blocks, _), group in groupby(jobs, way):
        names = list(group)
        if in_blocks:
            for block in jobs[names[0]].stream.blocks(names):
                elements = slice(block.start, block.start + len(block.base))
                merged = _combine(block.name, jobs[block.name], block.tau, elements)
                yield Piece(block.name, elements, block.base, merged)
        else:
            keep_freed_memory()
            yield from (_whole_piece(name, jobs[name]) for name in names)


def published_alpha(made: Iterable[Piece], pruned: Stream) -> float:
    """Return LiNeS' coefficient of the first block, ``(|sum_t tau_t|_1 / |merged|_1) / T``; 1 for a zero model.

    The pieces are those of this process, and ``pruned`` is what they are made of.
    """

    def magnitudes(piece: Piece) -> Tensor:
        if piece.merged is None:
            return torch.zeros(2, dtype=torch.float64, device=pruned.execution.device)
        summed = sum_tasks(part(pruned.open_stack(piece.name), piece.elements, pruned.like))
        return torch.stack([tau.abs().sum(dtype=torch.float64) for tau in (summed, piece.merged)])

    own = sum_by_tensor((piece.name, magnitudes(piece)) for piece in made)
    found = {name: sums for each in pruned.exchange(own) for name, sums in each.items()}
    # In an order that does not depend on whether layers were given.
    totals = sum((found[name] for name in natural_order(found)), torch.zeros(2, dtype=torch.float64))
    summed, combined = totals.tolist()
    return summed / combined / len(pruned.tasks) if combined else 1.0


def _whole_piece(name: str, job: Job) -> Piece:
    stack = job.stream.open_stack(name)
    elements, base = slice(0, len(stack.base)), stack.base
    if not job.kept.any():
        return Piece(name, elements, base, None)
    if job.rule.unit == "task":
        return Piece(name, elements, base, _sum_of_tasks(name, job).flatten())
    return Piece(name, elements, base, _combine(name, job, whole(stack, job.stream.like)).flatten())


def _combine(name: str, job: Job, tau: Tensor, elements: slice | None = None) -> Tensor:
    """Return the merged task vector of a whole tensor, ``(T, *shape) -> (*shape)``, or of some elements of it."""
    found, start = _statistics_of(name, job.stream, elements), 0 if elements is None else elements.start
    context = MergeContext(name, job.stream.tasks, job.survey, found, start, job.task)
    with job.stream.execution.exact():
        if not job.on_parts:
            return job.rule.combine(tau, context)
        parts = job.rule.parts(tau, context)
        return sum_tasks(torch.where(per_row(job.kept, parts).bool(), parts, 0))


def _sum_of_tasks(name: str, job: Job) -> Tensor:
    """Add up the parts of the tasks that are kept, one by one; the part of a pruned one is zero."""
    stack = job.stream.open_stack(name)

    def made_of(task: int) -> Tensor:
        context = MergeContext(name, job.stream.tasks[task : task + 1], job.survey)
        return job.rule.parts(whole(stack.only(task), job.stream.like), context)[0]

    first, *others = job.kept.nonzero().flatten().tolist()
    with job.stream.execution.exact():
        total = made_of(first)
        for task in others:
            total += made_of(task)
    return total


def _statistics_of(name: str, stream: Stream, elements: slice | None) -> Tensor | None:
    """Return a tensor's statistics of all tasks, ``(T, ...)``, or None where a task has none."""
    found = stream.collected(name)
    if found is None:
        return None
    return torch.stack(found if elements is None else [values.reshape(-1)[elements] for values in found])
