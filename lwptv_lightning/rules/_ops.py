"""Tensor operations that several merging rules share.

Shapes: T tasks; ``tau`` is a stack of task vectors ``(T, *shape)``. Masks are floats, 1 and 0: on the CPU torch
compares, selects and counts with booleans several times more slowly than it multiplies and adds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lwptv_lightning.stacks import sum_tasks


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Shape T numbers so that they act on the rows of a stack: ``(T,) -> (T, 1, ..., 1)``.

    Example:
        >>> per_row(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4)).shape
        torch.Size([2, 1, 1])
    """
    return values.to(like.device, like.dtype).reshape(-1, *[1] * (like.dim() - 1))


def as_rows(tau: Tensor) -> Tensor:
    """Flatten all but the first dimension: ``(T, *shape) -> (T, n)``, also where shape is ``()`` or n is 0.

    Example:
        >>> as_rows(torch.zeros(2, 3, 4)).shape, as_rows(torch.zeros(2)).shape
        (torch.Size([2, 12]), torch.Size([2, 1]))
    """
    return tau.reshape(len(tau), math.prod(tau.shape[1:]))


def trim_(tau: Tensor, thresholds: Tensor) -> Tensor:
    """Zero what is smaller in magnitude than its row's threshold, in place.

    Example:
        >>> trim_(torch.tensor([[1.0, -3.0], [4.0, 2.0]]), torch.tensor([2.0, 3.0])).tolist()
        [[0.0, -3.0], [4.0, 0.0]]
    """
    magnitudes = tau.abs()
    return tau.mul_(torch.ge(magnitudes, per_row(thresholds, tau), out=magnitudes))


def elect_signs(tau: Tensor, tie: float) -> Tensor:
    """Elect one sign per weight: that of the sum over tasks, and ``tie`` where the sum is zero.

    Args:
        tau: ``(T, *shape)``.
        tie: +1, -1, or 0 where none is elected.

    Returns:
        +1, -1 or ``tie``, ``(*shape)``.

    Example:
        >>> elect_signs(torch.tensor([[1.0, -2.0, 1.0], [1.0, 1.0, -1.0]]), tie=-1.0)
        tensor([ 1., -1., -1.])
    """
    signs = sum_tasks(tau).sign_()
    return signs.add_(_zeros_of(signs), alpha=tie) if tie else signs


def agreeing_magnitudes(tau: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the magnitudes of the entries with the elected sign, and this sign; where none is elected, -.

    Args:
        tau: ``(T, *shape)``.
        signs: +1, -1 or 0, ``(*shape)``.

    Returns:
        ``(T, *shape)``, zero for the other entries, and ``(*shape)``, +1 or -1.
    """
    direction = signs - _zeros_of(signs)
    return (tau * direction).clamp_(min=0), direction


def combine_agreeing(tau: Tensor, signs: Tensor, reduce: str) -> Tensor:
    """Combine, for each weight, the entries with the elected sign; zeros count as absent.

    Args:
        tau: ``(T, *shape)``.
        signs: +1, -1 or 0, ``(*shape)``.
        reduce: ``"mean"`` over the entries that agree, their ``"sum"``, or ``"max"``, the largest of them. Where no
            sign is elected the first two keep the negative entries and ``"max"`` keeps none, as in the code of TIES.

    Returns:
        ``(*shape)``; zero where no entry agrees.

    Example:
        >>> combine_agreeing(torch.tensor([[1.0, -2.0], [3.0, 1.0]]), torch.tensor([1.0, -1.0]), "mean")
        tensor([ 2., -2.])
    """
    magnitudes, direction = agreeing_magnitudes(tau, signs)
    if reduce == "max":
        return magnitudes.amax(0) * signs
    total = sum_tasks(magnitudes).mul_(direction)
    return total if reduce == "sum" else total.div_(sum_tasks(magnitudes.sign_()).clamp_(min=1))


def _zeros_of(values: Tensor) -> Tensor:
    """Return 1 where a value is 0, else 0."""
    return torch.eq(values, 0, out=torch.empty_like(values))


def magnitude_probabilities(tau: Tensor, density: float, epsilon: float) -> Tensor:
    """Return keep probabilities that grow with the rank of ``|tau|`` inside each row of each task's tensor.

    A tensor is seen as a matrix ``(shape[0], rest)``, a vector or a scalar as one row. The m elements of a row get
    ``density - epsilon`` to ``density + epsilon`` in m equal steps from the smallest to the largest magnitude; of
    equal ones the first ranks lower. A row of one element gets ``density``.

    Args:
        tau: ``(T, *shape)``.
        density: The mean probability.
        epsilon: Half the window.

    Returns:
        ``(T, *shape)``.

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

    Args:
        tau: ``(T, *shape)``.
        merged: ``(*shape)``.
        tall_lambda: The threshold lambda, at least 0.

    Returns:
        1 for a weight that matters and 0 for another, ``(T, *shape)``.

    Example:
        >>> tall_masks(torch.tensor([[1.0], [0.1]]), torch.tensor([1.1]), 0.4)
        tensor([[1.],
                [0.]])
    """
    limits = (merged - tau).abs_().mul_(tall_lambda)
    return torch.gt(tau.abs(), limits, out=limits)
