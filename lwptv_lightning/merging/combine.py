"""Apply rules to task vectors: in blocks, task by task or whole tensors, as each rule must see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from lwptv_lightning.engine import (
    FUSED_BASES,
    START,
    Block,
    Limits,
    Program,
    Stream,
    Threads,
    UnfusableError,
    begin_limits,
    keep_freed_memory,
    merge_fused,
    merging_program,
    spans,
    sum_by_tensor,
)
from lwptv_lightning.functional import Formula, sum_tasks
from lwptv_lightning.merging.ahead import decomposed_ahead
from lwptv_lightning.merging.memory import bytes_of_tensor, threads_within
from lwptv_lightning.merging.parts import added, combined, sum_of_tasks
from lwptv_lightning.merging.precision import in_dtype
from lwptv_lightning.registry import natural_order
from lwptv_lightning.rules import MergeContext, MergeRule
from lwptv_lightning.task_vectors import Stack, part, whole

Value = TypeVar("Value")


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
        on_parts: Whether the mask, and the coefficients, act on what the rule makes of each task.
        coefficients: Those of what the rule makes of each task, ``(T,)`` in the recipe's dtype; ``None`` for 1.
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
    coefficients: Tensor | None = None
    task: str | None = None
    least: float | None = None

    @property
    def weights(self) -> Tensor:
        """What the rule's parts are multiplied with, ``(T,)``; 0 where they are pruned."""
        return self.kept if self.coefficients is None else self.coefficients * self.kept


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
        return added(self.name, self.base, self.merged, job.scale, job.least)


def merged_pieces(jobs: Mapping[str, Job]) -> Iterator[Piece]:
    """Merge tensors, each from its first piece to its last; several threads make pieces of their own ahead."""
    yield from _each(jobs, lambda work: work.piece())


def added_pieces(jobs: Mapping[str, Job]) -> Iterator[tuple[str, slice, Tensor]]:
    """Do the same and yield, of each piece, the tensor's name, its elements, and the merged model's values there."""
    yield from _each(jobs, lambda work: (work.name, work.elements, work.added()))


def added_to_base(pieces: Iterable[Piece], jobs: Mapping[str, Job]) -> Iterator[tuple[str, slice, Tensor]]:
    """Do the same with pieces that are made already."""

    def added(piece: Piece) -> tuple[str, slice, Tensor]:
        return piece.name, piece.elements, piece.added(jobs[piece.name])

    threads = min((job.stream.execution.threads for job in jobs.values()), default=1)
    with Threads(threads) as pool:
        yield from pool.in_order(partial(added, piece) for piece in pieces)


def magnitudes(made: Iterable[Piece], pruned: Stream) -> dict[str, Tensor]:
    """Return ``|sum_t tau_t|_1`` and ``|merged|_1`` of each tensor, ``(2,)``, in an order of their names alone.

    The pieces are those of this process, and ``pruned`` is what they are made of.
    """

    def magnitude(tau: Tensor) -> Tensor:
        if tau.device.type != "cpu":
            return tau.abs().sum(dtype=torch.float64)
        # Torch would add up in an order that depends on how many threads it has.
        return torch.tensor(np.abs(tau.numpy()).sum(dtype=np.float64))

    open_stack = lru_cache(maxsize=1)(pruned.open_stack)  # the pieces of a tensor follow each other

    def both(piece: Piece) -> Tensor:
        if piece.merged is None:
            return torch.zeros(2, dtype=torch.float64, device=pruned.execution.device)
        summed = sum_tasks(part(open_stack(piece.name), piece.elements, pruned.like))
        return torch.stack([magnitude(tau) for tau in (summed, piece.merged)])

    own = sum_by_tensor((piece.name, both(piece)) for piece in made)
    found = {name: sums for each in pruned.exchange(own) for name, sums in each.items()}
    # In an order that does not depend on whether layers were given.
    return {name: found[name] for name in natural_order(found)}


def published_alpha(sums: Mapping[str, Tensor], tasks: int, scales: Mapping[str, float]) -> float:
    """Return LiNeS' coefficient of the first block, ``(|sum_t tau_t|_1 / |merged|_1) / T``; 1 for a zero model.

    Args:
        sums: From `magnitudes`.
        tasks: The number T.
        scales: What each merged tensor is multiplied with before; 1 for those not named.

    Example:
        >>> published_alpha({"w": torch.tensor([6.0, 2.0])}, 2, {}), published_alpha({}, 2, {})
        (1.5, 1.0)
    """
    summed = sum(float(own[0]) for own in sums.values())
    combined = sum(abs(scales.get(name, 1.0)) * float(own[1]) for name, own in sums.items())
    return summed / combined / tasks if combined else 1.0


@dataclass(frozen=True)
class _Work:
    """What a thread makes at a time: a block, or a whole tensor.

    Attributes:
        name: The tensor's name.
        job: How it is merged.
        stack: Its task vectors.
        elements: Which elements of the flattened tensor.
        block: What was read of them ahead.
    """

    name: str
    job: Job
    stack: Stack
    elements: slice
    block: Block | None = None

    def piece(self) -> Piece:
        merged = self._merged() if self.job.kept.any() else None
        base = self.stack.base[self.elements] if self.block is None else self.block.base
        return Piece(self.name, self.elements, base, merged)

    def added(self) -> Tensor:
        return self.piece().added(self.job)

    def _merged(self) -> Tensor:
        job, like = self.job, self.job.stream.like
        if job.rule.unit == "task":
            return sum_of_tasks(self.name, job, self.stack).flatten()
        if job.rule.unit == "tensor":
            return combined(self.name, job, whole(self.stack, like)).flatten()
        tau = part(self.stack, self.elements, like) if self.block is None else self.block.tau
        return combined(self.name, job, tau, self.elements)


@dataclass(frozen=True)
class _FusedWork(_Work):
    """A block that a compiled kernel merges.

    Attributes:
        program: What the kernel does.
        limits: Waits for what it needs to know of the whole tensor; None for nothing.
    """

    program: Program = field(kw_only=True)
    limits: Callable[[], Limits] | None = field(kw_only=True)

    def added(self) -> Tensor:
        base = self.stack.base
        if self.job.least is None and base.dtype in FUSED_BASES:
            with suppress(UnfusableError):
                return in_dtype(self.name, self._fused(self.job.scale), base.dtype)
        return super().added()

    def _merged(self) -> Tensor:
        with suppress(UnfusableError):
            return self._fused(None)
        if self.job.rule.unit == "element":
            return super()._merged()
        return super()._merged()[self.elements]

    def _fused(self, scale: float | None) -> Tensor:
        limits = None if self.limits is None else self.limits()
        return merge_fused(self.program, self.stack, self.elements, limits, scale)


def _each(jobs: Mapping[str, Job], use: Callable[[_Work], Value]) -> Iterator[Value]:
    """Divide jobs into work, and yield what is made of each, in order."""
    if not jobs:
        return
    keep_freed_memory()
    if next(iter(jobs.values())).stream.execution.device.type != "cpu":
        yield from (use(work) for work in _on_device(jobs))
        return
    most = max(bytes_of_tensor(job.rule, job.stream, name) for name, job in jobs.items())
    with Threads(threads_within(most, next(iter(jobs.values())).stream.execution)) as threads:
        yield from threads.in_order(partial(use, work) for work in _on_host(jobs, threads))


def _on_host(jobs: Mapping[str, Job], threads: Threads) -> Iterator[_Work]:
    for name, job in jobs.items():
        work = _whole(name, job)
        if not job.kept.any():
            yield work
            continue
        stack, elements = work.stack, job.stream.numel(name)
        stacked = len(job.stream.tasks) * job.stream.like.element_size()
        program = _program(name, job) if job.stream.is_compiled else None
        if job.on_parts and (program is not None or job.rule.unit == "task"):
            # What is made of a task here depends on it alone, so that one that is pruned is not read.
            stack = stack.where(job.kept.tolist())
        stack.read()
        if program is not None:
            limits = begin_limits(threads.submit, program, stack)
            for span in spans(elements, stacked, job.stream.execution.fused_bytes):
                yield _FusedWork(name, job, stack, span, program=program, limits=limits)
        elif job.rule.unit == "element":
            size = job.stream.execution.block_bytes or job.stream.execution.usual_block_bytes
            yield from (_Work(name, job, stack, span) for span in spans(elements, stacked, size))
        else:
            yield replace(work, stack=stack)


def _whole(name: str, job: Job) -> _Work:
    return _Work(name, job, job.stream.open_stack(name), slice(0, job.stream.numel(name)))


def _program(name: str, job: Job) -> Program | None:
    """Return what a kernel does to merge a tensor by a rule's formula; None where no kernel can."""
    tasks = len(job.stream.tasks)
    context = MergeContext(name, job.stream.tasks, job.survey, start=START, task=job.task)
    if job.stream.is_collected(name):
        return None

    def formula(tau: Formula) -> Any:
        stack = cast(Tensor, tau)
        return sum_tasks(job.rule.parts(stack, context)) if job.on_parts else job.rule.combine(stack, context)

    program = merging_program(formula, tasks, is_flat=job.rule.unit == "element")
    # A rule that gets tasks one by one may not be asked for what it does with all of them.
    if program is None or (job.rule.unit == "task" and not program.is_by_task):
        return None
    return program if job.coefficients is None else program.weighted(job.coefficients)


def _on_device(jobs: Mapping[str, Job]) -> Iterator[_Work]:
    """Divide jobs for one thread; on a device, the next block is copied while one is computed."""

    def way(name: str) -> tuple[bool, int]:
        job = jobs[name]
        return job.rule.unit == "element" and bool(job.kept.any()), id(job.stream)

    for (in_blocks, _), group in groupby(jobs, way):
        names = list(group)
        if not in_blocks:
            yield from (_whole(name, jobs[name]) for name in decomposed_ahead(jobs, names))
            continue
        for block in jobs[names[0]].stream.blocks(names):
            job = jobs[block.name]
            elements = slice(block.start, block.start + len(block.base))
            yield _Work(block.name, job, job.stream.open_stack(block.name), elements, block)
