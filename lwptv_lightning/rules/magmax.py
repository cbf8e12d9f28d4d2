"""MagMax."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.functional import only_row_of_each
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("magmax", paper="https://arxiv.org/abs/2407.06322", scale=0.5)
@dataclass(frozen=True, kw_only=True)
class MagMax(MergeRule):
    """Take, for each weight, the task vector with the largest magnitude there: ``tau_argmax_t |tau_t|``.

    Of equal magnitudes that of the later task is taken.

    Example:
        >>> MagMax().combine(torch.tensor([[1.0, -3.0, 2.0], [2.0, 1.0, -2.0]]), MergeContext("w", ("a", "b")))
        tensor([ 2., -3., -2.])

    Reference:
        Marczak et al., MagMax, arXiv 2407.06322. No deviation; the scale is that for models fine-tuned independently.
    """

    unit = "element"

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return of each task what is taken from it, ``(T, *shape)``."""
        largest, taken = tau[0].abs(), torch.zeros_like(tau[0], dtype=torch.long)
        for task, row in enumerate(tau[1:].abs(), start=1):
            taken = torch.where(row >= largest, task, taken)
            largest = torch.maximum(row, largest)
        return only_row_of_each(tau, taken)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Select from one stack, ``(T, *shape) -> (*shape)``."""
        largest = tau[0]
        for row in tau[1:]:
            largest = torch.where(row.abs() >= largest.abs(), row, largest)
        return largest
