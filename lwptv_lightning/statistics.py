"""One streaming pass over the task vectors gives the few numbers that every saliency score is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.layers import Layers
from lwptv_lightning.share import WHOLE, Share
from lwptv_lightning.task_vectors import TaskVectors

_BLOCK = 1 << 16
"""Elements of each task worked on at a time: T rows of them stay in a core's cache."""


@dataclass(frozen=True)
class LayerStatistics:
    """Sums over the elements of each layer's task vectors, T tasks by L layers.

    Every sum is in float64, so that differences of them stay meaningful, and on the CPU.

    Attributes:
        tasks: The T task names.
        layers: The L layers, in execution order.
        numel: Elements per layer, ``(L,)``.
        gram: Inner products between task vectors, ``<tau_s, tau_t>``, ``(L, T, T)``.
        l1: ``sum |tau_t|``, ``(T, L)``.
        base_squared: ``sum theta_0^2``, ``(L,)``.
        agreeing: Elements whose sign is that of the mean task vector, ``(T, L)``.
        opposing: Elements whose sign is opposite to that of the mean task vector, ``(T, L)``. Zeros do neither.
    """

    tasks: tuple[str, ...]
    layers: Layers
    numel: Tensor
    gram: Tensor
    l1: Tensor
    base_squared: Tensor
    agreeing: Tensor
    opposing: Tensor

    @property
    def squared(self) -> Tensor:
        """``sum tau_t^2``, ``(T, L)``."""
        return self.gram.diagonal(dim1=1, dim2=2).T

    @property
    def mean_dot(self) -> Tensor:
        """Inner product of each task vector with the mean of all, ``<tau_t, mean>``, ``(T, L)``."""
        return self.gram.mean(dim=2).T

    @property
    def mean_squared(self) -> Tensor:
        """Squared norm of the mean task vector, ``(L,)``."""
        return self.gram.mean(dim=(1, 2))


def collect_statistics(
    vectors: TaskVectors, layers: Layers, device: torch.device | str | None = None, *, share: Share = WHOLE
) -> LayerStatistics:
    """Read every task vector once and sum up what the saliency scores need.

    No data set is involved. A tensor is in memory only while it is summed up.

    Args:
        vectors: The task vectors.
        layers: Which tensors form a layer; tensors that are not merged are left out.
        device: Where to compute, such as ``"cuda"``; the CPU by default.
        share: The tensors that this process reads, where several share the work.

    Returns:
        The statistics of the layers that hold merged tensors.

    Raises:
        ValueError: A merged tensor is in no layer.
        CheckpointError: A weight is NaN or infinite.

    Example:
        >>> from lwptv_lightning.layers import layers_from_names
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.tensor([3.0, -4.0])}})
        >>> collect_statistics(vectors, layers_from_names(vectors.names, "tensor")).squared
        tensor([[25.]], dtype=torch.float64)
    """
    layers = merged_layers(vectors, layers)
    sums = share.each(layers.tensors, lambda name: _sum_up(vectors.stack(name, device), vectors.base(name)))
    return _by_layer(vectors.tasks, layers, sums)


def merged_layers(vectors: TaskVectors, layers: Layers) -> Layers:
    """Return the layers with merged tensors alone, after a check that none of these is left out.

    Raises:
        ValueError: A merged tensor is in no layer.
    """
    absent = sorted(set(vectors.names).difference(layers.tensors))
    if absent:
        raise ValueError(
            f"these merged tensors are in no layer: {', '.join(absent[:8])}. Layers and checkpoints must be of one "
            "model; name tensors that are not to be merged in exclude=(...)."
        )
    return layers.restrict(vectors.names)


def _sum_up(tau: Tensor, base: Tensor) -> Mapping[str, Tensor]:
    """Sum up one tensor, block by block: ``tau (T, *shape)`` and the base ``(*shape)``."""
    tau = tau.reshape(len(tau), -1)
    gram = torch.zeros(len(tau), len(tau), dtype=torch.float64, device=tau.device)
    l1, agreeing, opposing = (torch.zeros(len(tau), dtype=torch.float64, device=tau.device) for _ in range(3))
    for block in torch.split(tau, _BLOCK, dim=1):
        # A block's sums are taken in the dtype of tau, and added up in float64.
        gram += block @ block.T
        l1 += block.abs().sum(1)
        signs = block.sign() * block.mean(0).sign()
        agreeing += (signs > 0).sum(1)
        opposing += (signs < 0).sum(1)
    return {
        "gram": gram.cpu(),
        "l1": l1.cpu(),
        "agreeing": agreeing.cpu(),
        "opposing": opposing.cpu(),
        "base_squared": base.to(torch.float64).square().sum(),
        "numel": torch.tensor(tau.shape[1], dtype=torch.float64),
    }


def _by_layer(tasks: Iterable[str], layers: Layers, sums: Mapping[str, Mapping[str, Tensor]]) -> LayerStatistics:
    def total(field: str) -> Tensor:
        # In tensor order, so that the result does not depend on who summed up which tensor.
        return torch.stack([torch.stack([sums[name][field] for name in layer.tensors]).sum(0) for layer in layers])

    return LayerStatistics(
        tasks=tuple(tasks),
        layers=layers,
        numel=total("numel"),
        gram=total("gram"),
        l1=total("l1").T,
        base_squared=total("base_squared"),
        agreeing=total("agreeing").T,
        opposing=total("opposing").T,
    )
