"""`Stream`: the task vectors of a model as a rule's survey sees them, read block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from lwptv_lightning.engine.blocks import Block, read_blocks, sum_by_tensor
from lwptv_lightning.engine.execution import Execution
from lwptv_lightning.task_vectors import Stack, TaskVectors, whole

Value = TypeVar("Value")

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

    def numel(self, name: str) -> int:
        """Return the number of elements of a tensor."""
        return math.prod(self.shapes[name])

    @property
    def elements(self) -> int:
        """The number of elements of one task vector over the whole model."""
        return sum(map(self.numel, self.shapes))

    def stack(self, name: str) -> Tensor:
        """Return the T task vectors of one tensor, ``(T, *shape)``, for the caller to write to."""
        return whole(self.open_stack(name), self.like)

    def blocks(self, names: Iterable[str] | None = None) -> Iterator[Block]:
        """Read this process's tensors, or some of them, block by block and in order."""
        return self._read(self.own_names if names is None else names, self.execution.block_bytes)

    def every(self, stride: int) -> Iterator[Block]:
        """Read each ``stride``-th element of this process's tensors, a block for each tensor."""
        for name in self.own_names:
            stack = self.open_stack(name)
            base, *others = stack.sources(slice(None, None, stride))
            yield Block(name, 0, stack.tau(base.to(self.like), others), base)

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

    def sum(self, function: Callable[[Block], Tensor], names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Add up, for each tensor, what a function finds in its blocks, and return it on every process.

        Blocks have the same size whatever the execution, so that the sums repeat to the bit.

        Args:
            function: Returns a tensor, always of the same shape.
            names: The tensors, the same on every process; all by default.
        """
        names = self.names if names is None else tuple(names)
        blocks = self._read(self._own(names))
        return self._join(sum_by_tensor((block.name, function(block)) for block in blocks), names)

    def each(self, compute: Callable[[str], Value], names: Iterable[str]) -> dict[str, Value]:
        """Compute something of each tensor, where it belongs, and return it on every process, in the order of names."""
        names = tuple(names)
        return self._join({name: compute(name) for name in self._own(names)}, names)

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
