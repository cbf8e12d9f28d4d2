"""One streaming pass over the task vectors gives the few numbers that every saliency score is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lwptv_lightning.engine import Block, Execution, Stream, divide
from lwptv_lightning.functional import sum_tasks
from lwptv_lightning.layers import Layer, Layers
from lwptv_lightning.task_vectors import TaskVectors


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
        mean_squared: Squared norm of the mean task vector, ``(L,)``.
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
    mean_squared: Tensor
    deviation_squared: Tensor
    deviation_dot: Tensor

    @property
    def squared(self) -> Tensor:
        """``sum tau_t^2``, ``(T, L)``."""
        return self.gram.diagonal(dim1=1, dim2=2).T

    @property
    def mean_dot(self) -> Tensor:
        """Inner product of each task vector with the mean of all, ``<tau_t, mean>``, ``(T, L)``."""
        return self.mean_squared + self.deviation_dot


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
    execution = execution or Execution()
    execution = execution if device is None else replace(execution, device=torch.device(device))
    layers = merged_layers(vectors, layers)
    owner = divide([(name,) for name in layers.tensors], vectors.headers, execution.ranks.size)
    stream = Stream.of(vectors, layers.tensors, dtype=dtype, execution=execution, owner=owner)

    def sum_up(block: Block) -> Tensor:
        return torch.cat([_sums(block.tau), block.base.to(torch.float64).square().sum()[None]])

    with execution.ranks.sharing_errors(), execution.exact():
        return _by_layer(vectors, layers, stream.sum(sum_up))


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


def _sums(tau: Tensor) -> Tensor:
    """Sum up a block ``tau (T, n)``, ``(T * T + 5 T + 1,)`` float64.

    These are Gram matrix, L1 norms, agreeing, opposing, the mean's square, deviations' squares and products with it.
    """
    mean_sign, signs = sum_tasks(tau).sign_(), tau.sign()
    # Floats and no booleans, which torch sums and selects several times more slowly.
    agreement = signs @ mean_sign
    voting = signs.abs_() @ mean_sign.abs_()
    counts = torch.cat([(voting + agreement) / 2, (voting - agreement) / 2]).double()
    # In float64, in which squares of float32 numbers neither vanish nor overflow.
    exact = tau.double()
    gram, l1 = exact @ exact.T, exact.abs().sum(1)
    # Relative to the first task, so that equal task vectors deviate by nothing at all.
    beyond = exact - exact[0]
    mean_beyond = sum_tasks(beyond).div_(len(tau))
    mean, deviations = exact[0] + mean_beyond, beyond.sub_(mean_beyond)
    squares = torch.linalg.vecdot(deviations, deviations)
    return torch.cat([gram.flatten(), l1, counts, (mean @ mean)[None], squares, deviations @ mean])


def _by_layer(vectors: TaskVectors, layers: Layers, sums: Mapping[str, Tensor]) -> LayerStatistics:
    tasks = len(vectors.tasks)

    def total(layer: Layer) -> Tensor:
        # In tensor order, so that the result does not depend on who summed up which tensor.
        return torch.stack([sums[name] for name in layer.tensors]).sum(0)

    sizes = [tasks * tasks, tasks, tasks, tasks, 1, tasks, tasks, 1]
    totals = torch.stack([total(layer) for layer in layers])
    gram, l1, agreeing, opposing, mean, deviations, dots, base_squared = torch.split(totals, sizes, dim=1)
    return LayerStatistics(
        tasks=vectors.tasks,
        layers=layers,
        numel=torch.tensor([sum(vectors.headers[name].numel for name in layer.tensors) for layer in layers]).double(),
        gram=gram.reshape(-1, tasks, tasks),
        l1=l1.T,
        base_squared=base_squared.squeeze(1),
        agreeing=agreeing.T,
        opposing=opposing.T,
        mean_squared=mean.squeeze(1),
        deviation_squared=deviations.T,
        deviation_dot=dots.T,
    )
