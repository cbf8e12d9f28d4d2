"""Comparisons and selections, which on the CPU numpy finds several times faster than torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lwptv_lightning.functional.sums import as_rows


def compare(operator: Callable[[Any, Any], Any], values: Tensor, limits: Tensor | float) -> Tensor:
    """Return ``operator(values, limits)``, such as that of `operator.lt`, as a boolean mask; limits are broadcast.

    Example:
        >>> from operator import lt
        >>> compare(lt, torch.tensor([1.0, 2.0]), 2.0)
        tensor([ True, False])
    """
    if values.is_cuda:
        mask: Tensor = operator(values, limits)
        return mask
    return torch.from_numpy(operator(values.numpy(), limits.numpy() if isinstance(limits, Tensor) else limits))


def count_true(mask: Tensor) -> Tensor:
    """Count the true entries of each row, ``(R, n) -> (R,)``.

    Example:
        >>> count_true(torch.tensor([[True, False], [True, True]]))
        tensor([1, 2])
    """
    return mask.sum(1) if mask.is_cuda else torch.tensor([np.count_nonzero(row) for row in mask.numpy()])


def select(values: Tensor, mask: Tensor) -> Tensor:
    """Return the values where a mask of the same shape is true, row after row, ``(count,)``.

    Example:
        >>> select(torch.tensor([1.0, 2.0]), torch.tensor([False, True]))
        tensor([2.])
    """
    return values[mask] if values.is_cuda else torch.from_numpy(values.numpy()[mask.numpy()])


def positions(mask: Tensor) -> Tensor:
    """Return where a mask ``(n,)`` is true, ``(count,)``.

    Example:
        >>> positions(torch.tensor([False, True]))
        tensor([1])
    """
    return mask.nonzero().squeeze(1) if mask.is_cuda else torch.from_numpy(np.flatnonzero(mask.numpy()))


def magnitude_probabilities(tau: Tensor, density: float, epsilon: float) -> Tensor:
    """Return keep probabilities that grow with the rank of ``|tau|`` inside each row of each task's tensor.

    A tensor is seen as a matrix ``(shape[0], rest)``, a vector or a scalar as one row. The m elements of a row get
    ``density - epsilon`` to ``density + epsilon`` in m equal steps from the smallest to the largest magnitude; of
    equal ones the first ranks lower. A row of one element gets ``density``.

    Example:
        >>> magnitude_probabilities(torch.tensor([[1.0, -3.0, 2.0]]), 0.5, 0.25)
        tensor([[0.2500, 0.7500, 0.5000]])
    """
    rows = tau.flatten(2) if tau.dim() > 2 else as_rows(tau)
    length = rows.shape[-1]
    if length == 1:
        return torch.full_like(tau, density)
    ranks = rows.abs().argsort(dim=-1, stable=True).argsort(dim=-1)
    probabilities = density - epsilon + ranks.to(tau.dtype) / (length - 1) * (2 * epsilon)
    return probabilities.reshape(tau.shape)


def tall_masks(tau: Tensor, merged: Tensor, tall_lambda: float) -> Tensor:
    """Mark the weights of a merged task vector that matter to each task: ``|tau_t| > lambda |merged - tau_t|``.

    Returns:
        1 for a weight that matters and 0 for another, ``(T, *shape)``.

    Example:
        >>> tall_masks(torch.tensor([[1.0], [0.1]]), torch.tensor([1.1]), 0.4)
        tensor([[1.],
                [0.]])
    """
    limits = (merged - tau).abs_().mul_(tall_lambda)
    return torch.gt(tau.abs(), limits, out=limits)
