"""Tell tensors whose rows, columns or elements stand elsewhere from those that have nothing of the base's."""

from __future__ import annotations

import torch
from torch import Tensor

_LIKE = 0.8
"""Least cosine of a row to the base's row that it was."""
_CLOSER = 10.0
"""How many times closer to its best match, by one less the cosine, such a row is than by chance."""
_SHORTEST = 4
"""Elements of a row that has a direction to be told by, less its mean."""
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
    ours, theirs = (tensor.float().flatten() for tensor in (base, other))
    if not torch.allclose(torch.stack(ours.aminmax()), torch.stack(theirs.aminmax()), rtol=1e-5, atol=0.0):
        return False  # told without sorting
    ours, theirs = (values.sort().values for values in (ours, theirs))
    return torch.allclose(ours, theirs, rtol=1e-5, atol=0.0)


def _rows_are_elsewhere(base: Tensor, other: Tensor) -> bool:
    """Whether rows of a matrix are mostly like rows of another one, wherever these stand."""
    if base.shape[1] < _SHORTEST:
        return False
    sampled = _directions(other[:: -(-len(other) // _SAMPLED_ROWS)])
    best = _best_cosine(sampled, base)
    # Of many short rows one is near by chance: as near as one of the same elements in any order.
    order = torch.randperm(base.shape[1], generator=torch.Generator().manual_seed(0))
    chance = _best_cosine(sampled[:, order], base)
    return best > _LIKE and _CLOSER * (1 - best) < 1 - chance


def _best_cosine(rows: Tensor, base: Tensor) -> float:
    """Return the cosine of a row to the nearest one of a base, the median over the rows."""
    best = torch.zeros(len(rows))
    for start in range(0, len(base), _ROWS_AT_ONCE):
        cosines = rows @ _directions(base[start : start + _ROWS_AT_ONCE]).T
        best = torch.maximum(best, cosines.max(1).values)
    return float(best.median())


def _directions(rows: Tensor) -> Tensor:
    centred = rows.float() - rows.float().mean(1, keepdim=True)
    return torch.nn.functional.normalize(centred, dim=1)
