"""Sums and shapes of stacks of task vectors, ``(T, *shape)``."""

import math

import torch
from torch import Tensor

from lwptv_lightning.functional.formula import noted


@noted(tasks=0)
def sum_tasks(tau: Tensor) -> Tensor:
    """Sum over the tasks, ``(T, *shape) -> (*shape)``, from the first to the last.

    The order of ``tau.sum(0)`` depends on the number of elements, so that a block could get other last bits.

    Example:
        >>> import torch
        >>> sum_tasks(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([4., 6.])
    """
    total = tau[0].clone()
    for row in tau[1:]:
        total += row
    return total


def weighted_sum(parts: Tensor, weights: Tensor) -> Tensor:
    """Add up ``weights_t * parts_t``, ``(T, *shape) -> (*shape)``, from the first task to the last.

    A row of weight zero counts as zeros, whatever it holds; weights that are booleans choose rows.

    Example:
        >>> import torch
        >>> weighted_sum(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.5, 0.0]))
        tensor([0.5000, 1.0000])
    """
    factors = per_row(weights, parts)
    rows = parts if weights.dtype == torch.bool else parts * factors
    return sum_tasks(torch.where(factors.bool(), rows, 0))


def only_row_of_each(tau: Tensor, rows: Tensor) -> Tensor:
    """Zero, for each element, all rows but the one of a number, ``(T, *shape), (*shape) -> (T, *shape)``.

    Example:
        >>> import torch
        >>> only_row_of_each(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0]))
        tensor([[0., 2.],
                [3., 0.]])
    """
    return torch.zeros_like(tau).scatter_(0, rows[None], tau.gather(0, rows[None]))


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Shape T numbers so that they act on the rows of a stack: ``(T,) -> (T, 1, ..., 1)``.

    Example:
        >>> import torch
        >>> per_row(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4)).shape
        torch.Size([2, 1, 1])
    """
    return values.to(like.device, like.dtype).reshape(-1, *[1] * (like.dim() - 1))


def as_rows(tau: Tensor) -> Tensor:
    """Flatten all but the first dimension: ``(T, *shape) -> (T, n)``, also where shape is ``()`` or n is 0.

    Example:
        >>> import torch
        >>> as_rows(torch.zeros(2, 3, 4)).shape, as_rows(torch.zeros(2)).shape
        (torch.Size([2, 12]), torch.Size([2, 1]))
    """
    return tau.reshape(len(tau), math.prod(tau.shape[1:]))


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what values of a dtype are added up in: float64 for float64, else float32; torch promotes no float8.

    Example:
        >>> sum_dtype(torch.float8_e5m2), sum_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32
