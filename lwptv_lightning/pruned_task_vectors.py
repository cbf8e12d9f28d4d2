"""Task vectors as a merging rule sees them: what is pruned is exactly zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from lwptv_lightning.layers import Layers
from lwptv_lightning.pruning import ElementPruning, LayerMask
from lwptv_lightning.share import WHOLE, Share
from lwptv_lightning.stacks import Block, HeldStack, Stack, read_blocks, sum_by_tensor, whole
from lwptv_lightning.task_vectors import TaskVectors


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


class LayerPrunedTaskVectors(PrunedTaskVectors):
    """Task vectors whose pruned layers are zero; what every task prunes is not read at all.

    Args:
        vectors: The task vectors.
        layers: The layers that ``mask`` speaks of.
        mask: What to prune.
        device: Where stacks are made.
        dtype: The dtype of stacks.

    Raises:
        ValueError: The mask is for other tasks or other layers.
    """

    def __init__(
        self,
        vectors: TaskVectors,
        layers: Layers,
        mask: LayerMask,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(vectors, layers.tensors, device, dtype)
        if mask.tasks != vectors.tasks:
            raise ValueError(f"the mask is for tasks {list(mask.tasks)}, the task vectors hold {list(vectors.tasks)}.")
        if mask.layers != layers.names:
            raise ValueError("the mask was made for other layers than these: names or their order differ.")
        self._kept = {name: mask.kept[:, index] for index, layer in enumerate(layers) for name in layer.tensors}

    def kept(self, name: str) -> Tensor:  # noqa: D102 (inherited)
        return self._kept[name]

    def open_stack(self, name: str) -> Stack:  # noqa: D102 (inherited)
        kept = self.kept(name)
        if not kept.any():
            zero = torch.zeros((), device=self.device, dtype=self.dtype)
            return HeldStack(zero.expand(len(self.tasks), *self.shape(name)), self.vectors.base(name))
        return self.vectors.open_stack(name, self.device, self.dtype, kept.tolist())


class ElementPrunedTaskVectors(PrunedTaskVectors):
    """Task vectors with the smallest elements of each layer zero.

    A layer's tensors are pruned together. The layer made last is remembered, since its tensors are asked for in turn.

    Args:
        vectors: The task vectors.
        layers: Which tensors form a layer.
        pruning: How much to drop.
        device: Where stacks are made.
        dtype: The dtype of stacks.
    """

    def __init__(
        self,
        vectors: TaskVectors,
        layers: Layers,
        pruning: ElementPruning,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(vectors, layers.tensors, device, dtype)
        self._layers = layers
        self._pruning = pruning
        self._last_layer: dict[str, Tensor] = {}

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The tensors of each layer."""
        return tuple(layer.tensors for layer in self._layers)

    def kept(self, name: str) -> Tensor:  # noqa: D102 (inherited)
        return torch.full((len(self.tasks),), self._pruning.ratio < 1)

    def open_stack(self, name: str) -> Stack:  # noqa: D102 (inherited)
        if name not in self._last_layer:
            tensors = self._layers[self._layers.index_of(name)].tensors
            rows = [
                self.vectors.stack(tensor, self.device, self.dtype).reshape(len(self.tasks), self.numel(tensor))
                for tensor in tensors
            ]
            pruned = self._pruning.drop_smallest_(torch.cat(rows, dim=1))
            self._last_layer = dict(
                zip(tensors, torch.split(pruned, [row.shape[1] for row in rows], dim=1), strict=True)
            )
        return HeldStack(self._last_layer[name].reshape(len(self.tasks), *self.shape(name)), self.vectors.base(name))
