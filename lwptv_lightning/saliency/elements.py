"""Pruning inside layers: the smallest elements of each task vector go."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.saliency.mask import require_ratio


@dataclass(frozen=True, kw_only=True)
class ElementPruning:
    """Drop the smallest elements inside each layer of each task vector.

    Of the n elements of a layer the ``floor(ratio * n)`` with the smallest ``|tau|`` become zero; of equal ones the
    first in order. ``ratio=0`` drops nothing and ``ratio=1`` everything.

    Args:
        ratio: The fraction to drop, in [0, 1].

    Example:
        >>> import torch
        >>> ElementPruning(ratio=0.5).drop_smallest_(torch.tensor([[1.0, -3.0, 2.0, 0.5]]))
        tensor([[ 0., -3.,  2.,  0.]])
    """

    ratio: float

    def __post_init__(self) -> None:
        require_ratio(self.ratio)

    def drop_smallest_(self, tau: Tensor) -> Tensor:
        """Zero the smallest elements of each row, in place, and return the rows, ``(T, n)``."""
        dropped = math.floor(self.ratio * tau.shape[1] + 1e-9)
        order = tau.abs().argsort(dim=1, stable=True)
        return tau.scatter_(1, order[:, :dropped], 0.0)
