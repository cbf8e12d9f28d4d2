"""One streaming pass over the task vectors gives the few numbers that every saliency score is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lwptv_lightning.checkpoints import some_of
from lwptv_lightning.engine import Block, Execution, Stream, UnfusableError, divide, statistics_fused
from lwptv_lightning.functional import device_of, require_usable, sum_tasks
from lwptv_lightning.layers import Layer, Layers
from lwptv_lightning.registry import natural_order, require_kind
from lwptv_lightning.task_vectors import Stack, TaskVectors

_LEAST_USUAL, _MOST_USUAL = 1e-15, 1e15
"""The mean magnitudes of a block of a task vector between which its sums are taken in its own dtype."""


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
        deviation_squared: ``sum (tau_t - mean)^2``, ``(T, L)``. It is summed up itself, as what follows: from the
            Gram matrix of nearly equal task vectors it would be a difference of rounding.
        deviation_dot: Inner product of each deviation with the mean, ``<tau_t - mean, mean>``, ``(T, L)``.
    """

    tasks: tuple[str, ...]
    layers: Layers
    numel: Tensor
    gram: Tensor
    l1: Tensor
    base_squared: Tensor
    agreeing: Tensor
    opposing: Tensor
    deviation_squared: Tensor
    deviation_dot: Tensor

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
    vectors: TaskVectors,
    layers: Layers,
    device: torch.device | str | None = None,
    *,
    execution: Execution | None = None,
    dtype: torch.dtype = torch.float32,
) -> LayerStatistics:
    """Read every task vector once and sum up what the saliency scores need.

    No data set is involved. The task vectors are worked on block by block and never in memory as a whole.

    Args:
        vectors: The task vectors.
        layers: Which tensors form a layer; tensors that are not merged are left out.
        device: Where to compute, such as ``"cuda"``; the CPU by default.
        execution: Where and how to compute; its processes divide the tensors among them.
        dtype: What to subtract in, as a recipe's ``dtype``; sums are in float64 whatever it is.

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
    require_kind("vectors", vectors, TaskVectors, "TaskVectors")
    execution = execution or Execution()
    execution = execution if device is None else replace(execution, device=device_of("device", device))
    require_usable("device", execution.device)
    layers = merged_layers(vectors, layers)
    owner = divide([(name,) for name in layers.tensors], vectors.headers, execution.ranks.size)
    stream = Stream.of(vectors, layers.tensors, dtype=dtype, execution=execution, owner=owner)

    def sum_up(block: Block) -> Tensor:
        return torch.cat([_sums(block.tau), block.base.to(torch.float64).square().sum()[None]])

    with execution.ranks.sharing_errors(), execution.exact():
        return _by_layer(vectors, layers, stream.sum(sum_up, fused=_sums_by_kernel))


def merged_layers(vectors: TaskVectors, layers: Layers) -> Layers:
    """Return the layers with merged tensors alone, after a check that none of these is left out.

    Raises:
        ValueError: A merged tensor is in no layer.
    """
    require_kind("layers", layers, Layers, "Layers, from trace_layers or layers_from_names")
    absent = sorted(set(vectors.names).difference(layers.tensors))
    if absent:
        raise ValueError(
            f"these merged tensors are in no layer: {some_of(absent)} Layers and checkpoints must be of one "
            "model; name tensors that are not to be merged in exclude=(...)."
        )
    return layers.restrict(vectors.names)


def _sums(tau: Tensor) -> Tensor:
    """Sum up a block ``tau (T, n)``, ``(T * T + 5 T,)`` float64, added up over the blocks by the caller.

    These are Gram matrix, L1 norms, agreeing, opposing, deviations' squares and their products with the mean.
    """
    sums, tasks = _sums_in_dtype(tau), len(tau)
    extreme = _is_extreme(sums[tasks * tasks :][:tasks], tau.shape[1])
    return _sums_in_dtype(tau.double()) if tau.dtype != torch.float64 and extreme else sums


def _is_extreme(l1: Tensor, elements: int) -> bool:
    """Tell whether values are so small or large that squares of float32 numbers vanish or overflow."""
    usual = l1 / max(elements, 1)
    return bool((((usual > 0) & (usual < _LEAST_USUAL)) | (usual > _MOST_USUAL)).any())


def _sums_by_kernel(stack: Stack, elements: slice) -> Tensor:
    """Do the same for some elements of a stack, with the base's squares at the end, by a compiled kernel."""
    gram, sums, base_squared = statistics_fused(stack, elements)
    if _is_extreme(sums[0], elements.stop - elements.start):
        raise UnfusableError
    return torch.cat([gram.flatten(), sums.flatten(), base_squared[None]])


def _sums_in_dtype(tau: Tensor) -> Tensor:
    total, signs = sum_tasks(tau), tau.sign()
    mean, mean_sign = total / len(tau), total.sign_()
    # Floats and no booleans, which torch sums and selects several times more slowly.
    agreement = signs @ mean_sign
    voting = signs.abs_() @ mean_sign.abs_()
    l1 = torch.abs(tau, out=signs).sum(1)
    # Relative to the first task, so that equal task vectors deviate by nothing at all.
    deviations = torch.sub(tau, tau[0], out=signs)
    deviations -= sum_tasks(deviations).div_(len(tau))
    # A sum of products rounds less than a matrix product.
    products = [torch.linalg.vecdot(deviations, other) for other in (deviations, mean)]
    sums = [(tau @ tau.T).flatten(), l1, (voting + agreement) / 2, (voting - agreement) / 2, *products]
    return torch.cat([each.double() for each in sums])


def _by_layer(vectors: TaskVectors, layers: Layers, sums: Mapping[str, Tensor]) -> LayerStatistics:
    tasks = len(vectors.tasks)

    def total(layer: Layer) -> Tensor:
        # In an order that depends neither on who summed up which tensor nor on the order of a file.
        return torch.stack([sums[name] for name in natural_order(layer.tensors)]).sum(0)

    sizes = [tasks * tasks, tasks, tasks, tasks, tasks, tasks, 1]
    totals = torch.stack([total(layer) for layer in layers])
    gram, l1, agreeing, opposing, deviations, dots, base_squared = torch.split(totals, sizes, dim=1)
    return LayerStatistics(
        tasks=vectors.tasks,
        layers=layers,
        numel=torch.tensor([sum(vectors.headers[name].numel for name in layer.tensors) for layer in layers]).double(),
        gram=gram.reshape(-1, tasks, tasks),
        l1=l1.T,
        base_squared=base_squared.squeeze(1),
        agreeing=agreeing.T,
        opposing=opposing.T,
        deviation_squared=deviations.T,
        deviation_dot=dots.T,
    )
