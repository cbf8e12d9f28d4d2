"""Views of task vectors in which what is pruned is exactly zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from lwptv_lightning.engine import Stream
from lwptv_lightning.layers import Layers
from lwptv_lightning.saliency.elements import ElementPruning
from lwptv_lightning.saliency.mask import LayerMask
from lwptv_lightning.task_vectors import HeldStack, Stack


def masked(stream: Stream, layers: Layers, mask: LayerMask) -> Stream:
    """Return task vectors, in the order of the layers, whose pruned layers are zero and are not read.

    Raises:
        ValueError: The mask is for other tasks or other layers.

    Example:
        >>> from lwptv_lightning import TaskVectors, layers_from_names
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}})
        >>> layers = layers_from_names(vectors.names)
        >>> masked(Stream.of(vectors), layers, LayerMask(("a",), layers.names, torch.tensor([[False]]))).stack("w")
        tensor([[0., 0.]])
    """
    if mask.tasks != stream.tasks:
        raise ValueError(f"the mask is for tasks {list(mask.tasks)}, the task vectors hold {list(stream.tasks)}.")
    if mask.layers != layers.names:
        raise ValueError("the mask was made for other layers than these: names or their order differ.")
    return _zeroed(stream, {name: mask.kept[:, index] for index, layer in enumerate(layers) for name in layer.tensors})


def masked_beside(stream: Stream, layers: Layers, mask: LayerMask, order: Iterable[str]) -> Stream:
    """Return a stream of what is no weight, zero for the tasks that prune the layer that it goes with.

    Args:
        stream: Of tensors that no layer holds, such as running statistics.
        layers: Of the weights.
        mask: Of these layers.
        order: The names of all tensors, in execution order; see `lwptv_lightning.Layers.beside`.
    """
    positions = layers.beside(stream.names, order)
    return _zeroed(stream, {name: mask.kept[:, position] for name, position in positions.items()})


def _zeroed(stream: Stream, kept: Mapping[str, Tensor]) -> Stream:
    def open_stack(name: str) -> Stack:
        return stream.open_stack(name).where(kept[name].tolist())

    shapes = {name: stream.shapes[name] for name in kept}
    return replace(stream, shapes=shapes, open_stack=open_stack, kept=kept.__getitem__)


def thinned(stream: Stream, layers: Layers, pruning: ElementPruning) -> Stream:
    """Return task vectors, in the order of the layers, with the smallest elements of each layer zero.

    A layer's tensors are pruned together. The layer made last is remembered, since its tensors are asked for in turn.

    Example:
        >>> from lwptv_lightning import TaskVectors, layers_from_names
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.tensor([1.0, 3.0])}})
        >>> thinned(Stream.of(vectors), layers_from_names(vectors.names), ElementPruning(ratio=0.5)).stack("w")
        tensor([[0., 3.]])
    """
    tasks = len(stream.tasks)
    if pruning.ratio == 1:  # nothing is left to rank
        return _zeroed(stream, dict.fromkeys(layers.tensors, torch.zeros(tasks, dtype=torch.bool)))

    @lru_cache(maxsize=1)
    def pruned(layer: tuple[str, ...]) -> dict[str, Tensor]:
        rows = [stream.stack(name).reshape(tasks, stream.numel(name)) for name in layer]
        left = pruning.drop_smallest_(torch.cat(rows, dim=1))
        return dict(zip(layer, torch.split(left, [row.shape[1] for row in rows], dim=1), strict=True))

    def open_stack(name: str) -> Stack:
        left = pruned(layers[layers.index_of(name)].tensors)[name]
        return HeldStack(left.reshape(tasks, *stream.shapes[name]), stream.open_stack(name).base)

    keeps = torch.ones(tasks, dtype=torch.bool)
    shapes = {name: stream.shapes[name] for name in layers.tensors}
    return replace(stream, shapes=shapes, open_stack=open_stack, kept=lambda name: keeps)
