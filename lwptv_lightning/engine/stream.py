"""Task vectors as a merging rule sees them: what is pruned is exactly zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from lwptv_lightning.engine.blocks import Block, read_blocks, sum_by_tensor
from lwptv_lightning.engine.share import WHOLE, Share
from lwptv_lightning.task_vectors import Stack, TaskVectors, whole


class PrunedTaskVectors:
    """Task vectors on one device in one dtype; this base class prunes nothing.

    Args:
        vectors: The task vectors.
        names: The tensors in the order in which they are merged; by default that of the base checkpoint.
        device: Where stacks are made; the CPU by default.
        dtype: The dtype of stacks.

    Attributes:
        share: Which of the tensors this process reads; a rule's survey streams over `own_names` and meets the others
            in ``share.exchange``.
    """

    share: Share = WHOLE

    def __init__(
        self,
        vectors: TaskVectors,
        names: tuple[str, ...] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.vectors = vectors
        self.names = vectors.names if names is None else names
        self.device = device
        self.dtype = dtype

    @property
    def tasks(self) -> tuple[str, ...]:
        """The T task names; the first dimension of every stack."""
        return self.vectors.tasks

    @property
    def own_names(self) -> tuple[str, ...]:
        """The tensors that this process reads: all, unless several processes share the work."""
        return self.share.own(self.names)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The tensors that one process should have together, since making one reads them all."""
        return tuple((name,) for name in self.names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self.vectors.headers[name].shape

    def numel(self, name: str) -> int:
        """Return the number of elements of a tensor."""
        return math.prod(self.shape(name))

    def kept(self, name: str) -> Tensor:
        """Return which tasks keep a tensor, at least in part, ``(T,)`` bool."""
        return torch.ones(len(self.tasks), dtype=torch.bool)

    def open_stack(self, name: str) -> Stack:
        """Return the T task vectors of one tensor, to be read in blocks."""
        return self.vectors.open_stack(name, self.device, self.dtype)

    def stack(self, name: str) -> Tensor:
        """Return the T task vectors of one tensor, ``(T, *shape)``, for the caller to write to."""
        return whole(self.open_stack(name))

    def read_blocks(self, names: Iterable[str]) -> Iterator[Block]:
        """Read some tensors block by block; see `lwptv_lightning.stacks.read_blocks`."""
        return read_blocks(names, self.open_stack, self.dtype, self.device)

    def sum_blocks(self, function: Callable[[Block], Tensor], names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Add up, for each tensor, what a function finds in its blocks, and return it on every process.

        Args:
            function: Returns a tensor, always of the same shape.
            names: The tensors, the same on every process; all by default.
        """
        names = self.names if names is None else tuple(names)
        own = sum_by_tensor((block.name, function(block)) for block in self.read_blocks(self.share.own(names)))
        return self.share.join(own, names)
