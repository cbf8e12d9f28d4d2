"""Pruning inside layers: the smallest elements of each task vector go."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass

from torch import Tensor

from lwptv_lightning.registry import check_parameters, documented, fraction


@documented
@dataclass(frozen=True, kw_only=True)
class ElementPruning:
    """Drop the smallest elements inside each layer of each task vector.

    Of the n elements of a layer the ``floor(ratio * n)`` with the smallest ``|tau|`` become zero; of equal ones the
    first in order. ``ratio=0`` drops nothing and ``ratio=1`` everything.

    Raises:
        ValueError: ``ratio`` is outside [0, 1].

    Example:
        >>> import torch
        >>> ElementPruning(ratio=0.5).drop_smallest_(torch.tensor([[1.0, -3.0, 2.0, 0.5]]))
        tensor([[ 0., -3.,  2.,  0.]])
    """

    ratio: float = fraction(MISSING, "the fraction to drop")

    def __post_init__(self) -> None:
        check_parameters(self)

    def drop_smallest_(self, tau: Tensor) -> Tensor:
        """Zero the smallest elements of each row, in place, and return the rows, ``(T, n)``."""
        dropped = math.floor(self.ratio * tau.shape[1] + 1e-9)
        order = tau.abs().argsort(dim=1, stable=True)
        return tau.scatter_(1, order[:, :dropped], 0.0)
