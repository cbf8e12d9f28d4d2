"""The k-th smallest of many values, found by way of a sample."""

import math
from collections.abc import Sequence
from operator import le, lt

import numpy as np
from torch import Tensor

from lwptv_lightning.functional.masks import compare, count_true, select

_SMALL_SAMPLE = 1 << 14
"""How many values the bracket around a wanted one is estimated from."""
_DEVIATIONS = 4.0
"""Half the width of that bracket, in standard deviations of a sample's quantile."""
_LEAST_MARGIN = 16
"""That half width is at least so many values of the sample, since near its ends the deviation says little."""


def ranked_values(values: Tensor, orders: Sequence[int]) -> list[float]:
    """Return the k-th smallest of some values, ``(n,)``, for several k counted from 1.

    Example:
        >>> import torch
        >>> ranked_values(torch.tensor([3.0, 1.0, 2.0]), [1, 3])
        [1.0, 3.0]
    """
    count, stride = len(values), len(values) // _SMALL_SAMPLE
    if stride < 2:
        return kth_smallest(values, orders)
    sample = values[::stride]
    found: list[float] = []
    for k in orders:
        margins = [min(max(rank, 1), len(sample)) for rank in sample_margins(k, count, len(sample))]
        low, high = kth_smallest(sample, margins)
        smaller = compare(lt, values, low)
        inside = select(values, compare(le, values, high) ^ smaller)
        rank = k - int(count_true(smaller[None]))
        found += kth_smallest(inside, [rank]) if 1 <= rank <= len(inside) else kth_smallest(values, [k])
    return found


def sample_margins(k: int, total: int, size: int) -> tuple[int, int]:
    """Return the ranks in a sample between which the k-th of all values almost certainly lies."""
    margin = _DEVIATIONS * math.sqrt(k / total * (1 - k / total) * size) + _LEAST_MARGIN
    return math.floor(k / total * size - margin), math.ceil(k / total * size + margin)


def kth_smallest(values: Tensor, orders: Sequence[int]) -> list[float]:
    """Do what `ranked_values` does, for some thousand values."""
    if not orders:
        return []
    places = [k - 1 for k in orders]
    ordered = values.sort().values if values.is_cuda else np.partition(values.numpy(), places)
    return [float(ordered[place]) for place in places]
