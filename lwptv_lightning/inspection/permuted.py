"""Tell tensors whose rows, columns or elements stand elsewhere from those that have nothing of the base's."""

from __future__ import annotations

import torch
from torch import Tensor

_LIKE = 0.8
"""Least cosine of a row to the base's row that it was."""
_SAMPLED_ROWS = 32
_ROWS_AT_ONCE = 1 << 12
_MOST_SORTED = 1 << 24
"""Elements of a tensor up to which all are sorted."""


def is_permuted(base: Tensor, other: Tensor) -> bool:
    """Whether a tensor is one of the same shape with rows, columns or elements in another order.

    Rows and columns may be fine-tuned besides; elements may not.

    Example:
        >>> weight = torch.arange(200.0).square().sin().reshape(10, 20)
        >>> is_permuted(weight, weight.roll(3, 0) * 1.1), is_permuted(weight, weight.cos())
        (True, False)
    """
    if base.dim() > 1 and min(base.shape[0], base[0].numel()) > 1:
        ours, theirs = base.flatten(1), other.flatten(1)
        if _rows_are_elsewhere(ours, theirs) or _rows_are_elsewhere(ours.T, theirs.T):
            return True
    if base.numel() > _MOST_SORTED:
        return False
    ours, theirs = (tensor.float().flatten().sort().values for tensor in (base, other))
    return torch.allclose(ours, theirs, rtol=1e-5, atol=0.0)


def _rows_are_elsewhere(base: Tensor, other: Tensor) -> bool:
    """Whether rows of a matrix are mostly like rows of another one, wherever these stand."""
    sampled = _directions(other[:: -(-len(other) // _SAMPLED_ROWS)])
    best = torch.zeros(len(sampled))
    for start in range(0, len(base), _ROWS_AT_ONCE):
        cosines = sampled @ _directions(base[start : start + _ROWS_AT_ONCE]).T
        best = torch.maximum(best, cosines.max(1).values)
    return float(best.median()) > _LIKE


def _directions(rows: Tensor) -> Tensor:
    centred = rows.float() - rows.float().mean(1, keepdim=True)
    return torch.nn.functional.normalize(centred, dim=1)
