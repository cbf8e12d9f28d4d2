"""What a rule makes of each task, and the sum of that with coefficients: one arithmetic for all that merges.

``base + scale * sum_t c_t P_t``: each part ``P_t`` is multiplied with its coefficient and added up from the first task
to the last, in the recipe's dtype; a task that is pruned, or whose coefficient is zero, counts as zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lwptv_lightning.engine import Stream
from lwptv_lightning.functional import as_rows, weighted_sum
from lwptv_lightning.merging.precision import in_dtype
from lwptv_lightning.rules import MergeContext
from lwptv_lightning.task_vectors import Stack, whole

if TYPE_CHECKING:
    from lwptv_lightning.merging.combine import Job


def add_parts(name: str, base: Tensor, parts: Tensor, coefficients: Tensor, scale: float = 1.0) -> Tensor:
    """Return a tensor with the parts of all tasks added, ``base + scale * sum_t c_t P_t``, as a merge makes it.

    The bits are those of a merge by a recipe with these coefficients, which must be on the parts' device.

    Args:
        name: The tensor's name, for messages.
        base: The base's tensor, ``(*shape)`` in any dtype.
        parts: From `MergePlan.parts`, ``(T, *shape)``.
        coefficients: One for each task, ``(T,)``; rounded to the dtype of the parts.
        scale: The recipe's, times the layer scaling of the tensor.

    Returns:
        The merged tensor in the base's dtype, on the parts' device; the base's bits where all coefficients are zero.
        It is differentiable in the coefficients.

    Raises:
        ValueError: It overflows the base's dtype.

    Example:
        >>> add_parts("w", torch.ones(2), torch.eye(2), torch.tensor([0.5, 0.0]), scale=2.0)
        tensor([2., 1.])
    """
    if not coefficients.to(parts.dtype).any():
        return base.to(parts.device)
    return added(name, base, weighted_sum(parts, coefficients), scale)


def added(name: str, base: Tensor, merged: Tensor, scale: float, least: float | None = None) -> Tensor:
    """Return ``base + scale * merged`` in the base's dtype, at least ``least``.

    Raises:
        ValueError: It overflows that dtype.
    """
    # In float64 for a base in float64, whatever the rule computes in: what the rule leaves alone keeps its bits.
    dtype = torch.float64 if base.dtype == torch.float64 else merged.dtype
    total = base.to(merged.device, dtype, copy=True).add_(merged, alpha=scale)
    return in_dtype(name, total if least is None else total.clamp_(min=least), base.dtype)


def parts_of(name: str, job: Job) -> Tensor:
    """Return what a job's rule makes of each task, ``(T, *shape)``, before coefficients and mask."""
    stack = job.stream.open_stack(name)
    with job.stream.execution.exact():
        if job.rule.unit == "task":
            return torch.stack([_part(name, job, stack, task) for task in range(len(job.stream.tasks))])
        tau = whole(stack, job.stream.like)
        if job.rule.unit == "element":  # as blocks come: flattened
            return job.rule.parts(as_rows(tau), _context(name, job, slice(None))).reshape(stack.shape)
        return job.rule.parts(tau, _context(name, job))


def combined(name: str, job: Job, tau: Tensor, elements: slice | None = None) -> Tensor:
    """Return the merged task vector of a whole tensor, ``(T, *shape) -> (*shape)``, or of some elements of it."""
    context = _context(name, job, elements)
    with job.stream.execution.exact():
        if not job.on_parts:
            return job.rule.combine(tau, context)
        return weighted_sum(job.rule.parts(tau, context), job.weights)


def sum_of_tasks(name: str, job: Job, stack: Stack) -> Tensor:
    """Add up the parts of the tasks that are kept, one by one; the part of a pruned one is zero."""
    first, *others = job.kept.nonzero().flatten().tolist()
    factors = None if job.coefficients is None else job.coefficients.tolist()

    def weighted(task: int) -> Tensor:
        made = _part(name, job, stack, task)
        return made if factors is None else made * factors[task]

    with job.stream.execution.exact():
        total = weighted(first)
        for task in others:
            total += weighted(task)
    # Zeros that were not added would have made a positive zero of a negative one.
    return total if job.kept.all() else total.add_(0.0)


def _part(name: str, job: Job, stack: Stack, task: int) -> Tensor:
    context = MergeContext(name, job.stream.tasks[task : task + 1], job.survey, once=job.stream.once)
    return job.rule.parts(whole(stack.only(task), job.stream.like), context)[0]


def _context(name: str, job: Job, elements: slice | None = None) -> MergeContext:
    found, start = _statistics_of(name, job.stream, elements), (elements and elements.start) or 0
    return MergeContext(name, job.stream.tasks, job.survey, found, start, job.task, job.stream.once)


def _statistics_of(name: str, stream: Stream, elements: slice | None) -> Tensor | None:
    """Return a tensor's statistics of all tasks, ``(T, ...)``, or None where a task has none."""
    found = stream.collected(name)
    if found is None:
        return None
    return torch.stack(found if elements is None else [values.reshape(-1)[elements] for values in found])
