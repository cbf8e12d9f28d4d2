"""Elected signs, and the entries that agree with them.

Shapes: T tasks; ``tau`` is a stack of task vectors ``(T, *shape)``. Masks are floats, 1 and 0: on the CPU torch
compares, selects and counts with booleans several times more slowly than it multiplies and adds.
"""

import torch
from torch import Tensor

from lwptv_lightning.functional.formula import noted
from lwptv_lightning.functional.sums import only_row_of_each, sum_tasks


@noted(tasks=0)
def elect_signs(tau: Tensor, tie: float) -> Tensor:
    """Elect one sign per weight, ``(*shape)``: that of the sum over tasks, and ``tie`` where the sum is zero.

    A tie of 0 elects none there.

    Example:
        >>> elect_signs(torch.tensor([[1.0, -2.0, 1.0], [1.0, 1.0, -1.0]]), tie=-1.0)
        tensor([ 1., -1., -1.])
    """
    signs = sum_tasks(tau).sign_()
    return signs.add_(_zeros_of(signs), alpha=tie) if tie else signs


def agreeing_magnitudes(tau: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the magnitudes of the entries with the elected sign, 0 for others, and this sign; - where none is."""
    direction = signs - _zeros_of(signs)
    return (tau * direction).clamp_(min=0), direction


@noted(tasks=0)
def combine_agreeing(tau: Tensor, signs: Tensor, reduce: str) -> Tensor:
    """Combine, for each weight, the entries with the elected sign; zeros count as absent.

    Args:
        tau: ``(T, *shape)``.
        signs: +1, -1 or 0, ``(*shape)``.
        reduce: ``"mean"`` over the entries that agree, their ``"sum"``, or ``"max"``, the largest of them. Where no
            sign is elected the first two keep the negative entries and ``"max"`` keeps none, as in the code of TIES.
            Where no entry agrees, all give zero.

    Example:
        >>> combine_agreeing(torch.tensor([[1.0, -2.0], [3.0, 1.0]]), torch.tensor([1.0, -1.0]), "mean")
        tensor([ 2., -2.])
    """
    magnitudes, direction = agreeing_magnitudes(tau, signs)
    if reduce == "max":
        return magnitudes.amax(0) * signs
    total = sum_tasks(magnitudes).mul_(direction)
    return total if reduce == "sum" else total.div_(sum_tasks(magnitudes.sign_()).clamp_(min=1))


def agreeing_parts(tau: Tensor, signs: Tensor, reduce: str) -> Tensor:
    """Return each row's part of what `combine_agreeing` gives, ``(T, *shape)``.

    Of the entries that agree each gives itself, over their number for ``"mean"``; for ``"max"`` the largest gives all,
    of equal ones the first.

    Example:
        >>> agreeing_parts(torch.tensor([[1.0, -2.0], [3.0, 1.0]]), torch.tensor([1.0, -1.0]), "mean")
        tensor([[ 0.5000, -2.0000],
                [ 1.5000, -0.0000]])
    """
    magnitudes, direction = agreeing_magnitudes(tau, signs)
    if reduce == "max":
        return only_row_of_each(magnitudes, magnitudes.argmax(0)).mul_(signs)
    if reduce == "mean":
        magnitudes.div_(sum_tasks(magnitudes.sign()).clamp_(min=1))
    return magnitudes.mul_(direction)


def _zeros_of(values: Tensor) -> Tensor:
    """Return 1 where a value is 0, else 0."""
    return torch.eq(values, 0, out=torch.empty_like(values))
