"""Views of task vectors in which what is pruned is exactly zero."""

from __future__ import annotations

import torch
from torch import Tensor

from lwptv_lightning.engine import PrunedTaskVectors
from lwptv_lightning.layers import Layers
from lwptv_lightning.saliency.elements import ElementPruning
from lwptv_lightning.saliency.mask import LayerMask
from lwptv_lightning.task_vectors import HeldStack, Stack, TaskVectors


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
