"""`Stream`: the task vectors of a model as a rule's survey sees them, read block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from lwptv_lightning.engine.blocks import Block, keep_freed_memory, read_blocks, spans, sum_by_tensor
from lwptv_lightning.engine.execution import Execution
from lwptv_lightning.engine.fused import UnfusableError, vote_fused
from lwptv_lightning.engine.memo import Once
from lwptv_lightning.engine.program import START, Program, voting_program
from lwptv_lightning.engine.threads import Threads
from lwptv_lightning.functional import Formula
from lwptv_lightning.registry import steps_of
from lwptv_lightning.task_vectors import Stack, TaskVectors, part, whole

Value = TypeVar("Value")

ReadProgram: TypeAlias = Callable[[Callable[[Formula], Any], int], Program | None]
"""Reads a program off a formula, as `lwptv_lightning.engine.program` does."""
Fused: TypeAlias = Callable[[Stack, slice], Value]
"""Computes by a compiled kernel what a function would of a block."""

DataStatistics: TypeAlias = Mapping[str, Mapping[str, Tensor]]
"""What was collected on data: task to tensor name to a tensor, such as a diagonal Fisher information."""


@dataclass(frozen=True)
class Stream:
    """A view of the task vectors: which tensors, in which order and dtype; what is pruned is zero.

    Functions make one view of another, such as `lwptv_lightning.saliency.masked`. Several processes divide the tensors
    among them: each reads its own in `blocks`, and all meet in `sum` and `exchange`, which every process must call.

    Attributes:
        tasks: The T task names; the first dimension of every stack.
        shapes: Tensor name to shape, in the order in which tensors are merged.
        open_stack: Returns a tensor's stack by its name.
        kept: Returns which tasks keep a tensor, at least in part, ``(T,)`` bool.
        dtype: The dtype to compute in.
        data: What was collected on data, for rules that need it.
        execution: Where and how to read.
        owner: Tensor name to the number of the process that reads it; one process alone reads all.
        held_bytes: Returns what a tensor's stack takes in memory while it is read, besides blocks and mapped files.

    Example:
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.tensor([3.0, -4.0])}})
        >>> stream = Stream.of(vectors)
        >>> stream.sum(lambda block: block.tau.abs().sum(1))
        {'w': tensor([7.])}
    """

    tasks: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    open_stack: Callable[[str], Stack]
    kept: Callable[[str], Tensor]
    dtype: torch.dtype = torch.float32
    data: DataStatistics | None = None
    execution: Execution = field(default_factory=Execution)
    owner: Mapping[str, int] | None = None
    held_bytes: Callable[[str], int] = lambda name: 0

    @classmethod
    def of(cls, vectors: TaskVectors, names: Sequence[str] | None = None, **attributes: Any) -> Stream:
        """Return the whole task vectors.

        Args:
            vectors: The task vectors.
            names: The tensors, in the order wanted; by default all that are merged, in the base's order.
            attributes: Others than tasks, shapes, stacks and what is kept.
        """
        shapes = {name: vectors.headers[name].shape for name in (vectors.names if names is None else names)}
        everything = torch.ones(len(vectors), dtype=torch.bool)
        return cls(vectors.tasks, shapes, vectors.open_stack, lambda name: everything, **attributes)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors, in the order in which they are merged."""
        return tuple(self.shapes)

    @property
    def own_names(self) -> tuple[str, ...]:
        """The tensors that this process reads: all, unless several processes share the work."""
        return self._own(self.shapes)

    @property
    def like(self) -> Tensor:
        """An empty tensor of the dtype and on the device to compute in."""
        return torch.empty(0, dtype=self.dtype, device=self.execution.device)

    @property
    def once(self) -> Once:
        """Computes what a pure function makes of a tensor, or remembers it; see `MergeContext.once`."""
        return self.execution.once

    def numel(self, name: str) -> int:
        """Return the number of elements of a tensor."""
        return math.prod(self.shapes[name])

    @cached_property
    def elements(self) -> int:
        """The number of elements of one task vector over the whole model."""
        return sum(map(self.numel, self.shapes))

    def stack(self, name: str) -> Tensor:
        """Return the T task vectors of one tensor, ``(T, *shape)``, for the caller to write to."""
        return whole(self.open_stack(name), self.like)

    def blocks(self, names: Iterable[str] | None = None) -> Iterator[Block]:
        """Read this process's tensors, or some of them, block by block and in order."""
        return self._read(self.own_names if names is None else names, self.execution.block_bytes)

    def sample(self, function: Callable[[Block], Value], stride: int) -> list[Value]:
        """Apply a function to each ``stride``-th element of this process's tensors, a block for each tensor."""

        def drawn(name: str, stack: Stack) -> Value:
            with self.execution.exact():
                tau = part(stack, slice(None, None, stride), self.like)
                return function(Block(name, 0, tau, stack.base[::stride]))

        with Threads(self._threads) as threads:
            return list(threads.in_order(partial(drawn, name, self.open_stack(name)) for name in self.own_names))

    def map(
        self,
        function: Callable[[Block], Value],
        names: Iterable[str] | None = None,
        fused: Callable[[str], Fused[Value] | None] = lambda name: None,
    ) -> Iterator[tuple[str, Value]]:
        """Apply a function to each block of this process's tensors, in several threads, and yield results in order.

        Blocks have the same size whatever the execution, so that sums over them repeat to the bit.

        Args:
            function: Computes something of a block; it is called in other threads.
            names: The tensors; this process's by default.
            fused: Gives for a tensor's name what computes the same by a compiled kernel, or None.

        Yields:
            The tensor's name, and what was found in a block.
        """
        names, size = self.own_names if names is None else tuple(names), self.execution.usual_block_bytes
        steps = partial(steps_of, what="Reading", total=sum(map(self.numel, names)), steps=self.numel)
        if self.execution.device.type != "cpu":
            yield from ((block.name, function(block)) for block in self._read(names, size))
            return
        keep_freed_memory()
        element = len(self.tasks) * self.like.element_size()

        def calls() -> Iterator[Callable[[], tuple[str, Value]]]:
            for name in steps(names):
                stack, quick = self.open_stack(name), fused(name) if self.is_compiled else None
                stack.read()
                for span in spans(self.numel(name), element, size if quick is None else self.execution.fused_bytes):
                    yield partial(self._apply, function, quick, name, stack, span)

        with Threads(self._threads) as threads:
            yield from threads.in_order(calls())

    def _apply(
        self, function: Callable[[Block], Value], quick: Fused[Value] | None, name: str, stack: Stack, span: slice
    ) -> tuple[str, Value]:
        if quick is not None:
            with suppress(UnfusableError):  # the plain way tells what is broken, and where
                return name, quick(stack, span)
        with self.execution.exact():
            return name, function(Block(name, span.start, part(stack, span, self.like), stack.base[span]))

    @cached_property
    def is_compiled(self) -> bool:
        """Whether compiled kernels read these task vectors, as far as there are some."""
        return self.execution.compiles(len(self.tasks) * self.elements, self.like)

    def program(self, read: ReadProgram, function: Callable[[Block], Any], name: str) -> Program | None:
        """Return what a kernel has to do to compute a function of the blocks of a tensor; None where none does it."""
        return read(lambda tau: function(Block(name, START, cast(Tensor, tau), cast(Tensor, None))), len(self.tasks))

    def collected(self, name: str) -> list[Tensor] | None:
        """Return what was collected on data for a tensor, of each task; None where a task has nothing.

        Statistics of a layer's inputs may stand under the name of its module or of its weight.
        """
        key = self._collected_as(name)
        return None if key is None or self.data is None else [self.data[task][key] for task in self.tasks]

    def is_collected(self, name: str) -> bool:
        """Whether something was collected on data for a tensor, of each task; nothing is read for that."""
        return self._collected_as(name) is not None

    def _collected_as(self, name: str) -> str | None:
        given = [] if self.data is None else [self.data[task] for task in self.tasks]
        keys = (name, name.removesuffix(".weight"))
        return next((key for key in keys if given and all(key in tensors for tensors in given)), None)

    def sum(
        self,
        function: Callable[[Block], Tensor],
        names: Iterable[str] | None = None,
        fused: Fused[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Add up, for each tensor, what a function finds in its blocks, and return it on every process.

        Blocks have the same size whatever the execution, so that the sums repeat to the bit.

        Args:
            function: Returns a tensor, always of the same shape.
            names: The tensors, the same on every process; all by default.
            fused: Computes the same by a compiled kernel, where the function itself does not tell one.
        """
        names = self.names if names is None else tuple(names)

        def quick(name: str) -> Fused[Tensor] | None:
            if fused is not None:
                return fused
            program = self.program(voting_program, function, name)
            return None if program is None else partial(vote_fused, program)

        return self._join(sum_by_tensor(self.map(function, self._own(names), quick)), names)

    def each(self, compute: Callable[[str], Value], names: Iterable[str]) -> dict[str, Value]:
        """Compute something of each tensor, where it belongs, and return it on every process, in the order of names."""
        names = tuple(names)
        own = self._own(names)
        if self.execution.device.type != "cpu":
            return self._join({name: compute(name) for name in own}, names)
        # Whole tensors, of which several at a time might exceed a limit.
        with Threads(self.execution.threads if self.execution.max_memory is None else 1) as threads:
            found = threads.in_order(partial(compute, name) for name in own)
            return self._join(dict(zip(own, found, strict=True)), names)

    @property
    def _threads(self) -> int:
        """How many threads read blocks: one where the tensors that several hold might exceed a limit."""
        limited = self.execution.max_memory is not None and any(map(self.held_bytes, self.shapes))
        return 1 if limited else self.execution.threads

    def exchange(self, value: Value) -> list[Value]:
        """Return what each process gave, in the processes' order; every process must call it."""
        return self.execution.ranks.exchange(value)

    def _read(self, names: Iterable[str], block_bytes: int | None = None) -> Iterator[Block]:
        stacks = ((name, self.open_stack(name)) for name in names)
        return read_blocks(stacks, self.like, block_bytes or self.execution.usual_block_bytes)

    def _own(self, names: Iterable[str]) -> tuple[str, ...]:
        rank = self.execution.ranks.rank
        return tuple(name for name in names if self.owner is None or self.owner[name] == rank)

    def _join(self, own: Mapping[str, Value], names: Iterable[str]) -> dict[str, Value]:
        found = {name: value for part in self.exchange(dict(own)) for name, value in part.items()}
        return {name: found[name] for name in names}
