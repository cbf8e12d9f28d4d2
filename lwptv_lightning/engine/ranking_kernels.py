"""Compiled kernels that search for order statistics of magnitudes; see `lwptv_lightning.engine.kernels`."""

from __future__ import annotations

import math

import numpy as np

from lwptv_lightning.engine.kernels import drop_row
from lwptv_lightning.engine.loops import (
    ONE,
    TILE,
    ZERO,
    f32,
    i64,
    kernel,
    load,
    load_row,
    loop,
    reduction,
)
from lwptv_lightning.engine.program import NOTHING

_SCANNED = 32
"""Elements that are looked at one by one where one of them is inside a bracket."""
_SAMPLE = 1 << 15
"""Magnitudes of a tensor from which brackets are estimated."""
_DEVIATIONS, _LEAST_MARGIN = 3.0, 16
"""Half the width of a bracket in standard deviations of a sample's quantile, and in values of the sample at least."""


@reduction
def _count_part(part, low, high):
    """Count the magnitudes of part of a row below a bracket, up to its low end, and up to its high end."""
    below, up_to, through = ZERO, ZERO, ZERO
    for i in range(_SCANNED):
        size = abs(part[i])
        below += ONE if size < low else ZERO
        up_to += ONE if size <= low else ZERO
        through += ONE if size <= high else ZERO
    return below, up_to, through


@loop
def _gather_row(row, low, high, found, places, counts, position, n):
    """Count a row's magnitudes below a bracket and at its low end, and append those above it up to the high end.

    Places are kept as well, unless ``places`` is empty; ``position`` is that of the row's first element.
    """
    row[n : -(-n // _SCANNED) * _SCANNED] = np.inf  # which is beyond every bracket but for one that ends there
    smaller, lowest, held = counts
    for first in range(0, n, _SCANNED):
        below, up_to, through = _count_part(row[first : first + _SCANNED], low, high)
        smaller += i64(below)
        lowest += i64(up_to - below)
        if through == up_to:
            continue
        for i in range(first, min(first + _SCANNED, n)):
            size = abs(row[i])
            found[held] = size  # without a branch, which would often be guessed wrong
            if len(places):
                places[held] = position + i
            held += i64((size > low) & (size <= high))
    counts[0], counts[1], counts[2] = smaller, lowest, held


@kernel
def gather(sources, drop, low, high, found, counts):
    """Count each task's magnitudes below a bracket and at its low end, and gather those inside, after a drop.

    Args:
        sources, drop: As for every kernel.
        low: Low ends, ``(T,)``, which are not inside.
        high: High ends, ``(T,)``, which are.
        found: Receives the magnitudes inside, ``(T, n)``.
        counts: Receives how many are below, at the low end and inside, ``(T, 3)`` int64.

    Returns:
        Whether a value of the sources is NaN or infinite.
    """
    addresses, kinds, base_address, base_kind, start, count = sources
    row, base, no_places = np.empty(TILE, f32), np.empty(TILE, f32), np.empty(0, i64)
    broken = False
    for offset in range(0, count, TILE):
        n = min(TILE, count - offset)
        load(base_address, base_kind, offset, base, n)
        for task in range(len(addresses)):
            if kinds[task] == NOTHING and low[task] >= ZERO:  # zeros, which are counted without a look at them
                counts[task, 0 if low[task] > ZERO else 1] += n
                continue
            broken |= load_row(addresses[task], kinds[task], offset, base, row, n)
            drop_row(row, task, start + offset, drop, n)
            _gather_row(row, low[task], high[task], found[task], no_places, counts[task], 0, n)
    return broken


@loop
def _estimate(sources, ranks, low, high):
    """Estimate brackets of the magnitudes of some ranks from a sample of a tensor."""
    addresses, kinds, base_address, base_kind, _, count = sources
    stride = count // _SAMPLE
    size = -(-count // stride)
    sample, base, row = np.empty(size, f32), np.empty(1, f32), np.empty(1, f32)
    for i in range(size):
        load(base_address, base_kind, i * stride, base, 1)
        load_row(addresses[0], kinds[0], i * stride, base, row, 1)
        sample[i] = abs(row[0])
    first, last = np.empty(len(ranks), i64), np.empty(len(ranks), i64)
    for r in range(len(ranks)):
        share = ranks[r] / count
        margin = _DEVIATIONS * math.sqrt(share * (1 - share) * size) + _LEAST_MARGIN
        first[r], last[r] = math.floor(share * size - margin), math.ceil(share * size + margin)
    ordered = np.partition(sample, np.clip(np.concatenate((first, last)), 0, size - 1))
    for r in range(len(ranks)):
        low[r] = -ONE if first[r] < 0 else np.nextafter(ordered[first[r]], -ONE)
        high[r] = np.inf if last[r] >= size else ordered[last[r]]


@loop
def _limit(found, places, k, first_stay, end):
    """Return the k-th smallest of some magnitudes, and from which place on values of that magnitude rank above it.

    Of equal magnitudes the first rank lower. With ``first_stay`` they rank higher, and the place is the one before
    which values rank above; ``end`` stands for none.
    """
    limit = np.partition(found, k - 1)[k - 1]
    smaller, ties = 0, 0
    for size in found:
        smaller += size < limit
        ties += size == limit
    passed = ties - (k - smaller) if first_stay else k - smaller
    for i in range(len(found)):
        if found[i] == limit:
            if passed == 0:
                return limit, places[i]
            passed -= 1
    return limit, end


@kernel
def limits(sources, ranks, first_stay, values, places):
    """Find the magnitudes of some ranks in one task's tensor, above which values stay or go.

    Args:
        sources: As for every kernel, of one task.
        ranks: How many values rank below, ``(R,)`` int64.
        first_stay: Whether of equal magnitudes the first rank higher.
        values: Receives the magnitudes, ``(R,)``; below 0 where everything ranks above.
        places: Receives the places at which values of just this magnitude change sides, ``(R,)`` int64.

    Returns:
        Whether a value of the sources is NaN or infinite.
    """
    addresses, kinds, base_address, base_kind, _, count = sources
    if kinds[0] == NOTHING:
        return False
    row, base = np.empty(TILE, f32), np.empty(TILE, f32)
    # Only what is written to takes memory.
    found, where = np.empty((len(ranks), count), f32), np.empty((len(ranks), count), i64)
    low, high = np.full(len(ranks), -ONE), np.full(len(ranks), f32(np.inf))
    if count >= 4 * _SAMPLE:
        _estimate(sources, ranks, low, high)
    counts = np.zeros((len(ranks), 3), i64)
    broken, wanted = False, ranks > 0
    values[:], places[:] = -ONE, 0
    while wanted.any():
        for offset in range(0, count, TILE):
            n = min(TILE, count - offset)
            load(base_address, base_kind, offset, base, n)
            broken |= load_row(addresses[0], kinds[0], offset, base, row, n)
            for r in range(len(ranks)):
                if wanted[r]:
                    _gather_row(row, low[r], high[r], found[r], where[r], counts[r], offset, n)
        for r in range(len(ranks)):
            k, held = ranks[r] - counts[r, 0] - counts[r, 1], counts[r, 2]
            if wanted[r] and (1 <= k <= held or broken):
                wanted[r] = False
                if not broken:
                    values[r], places[r] = _limit(found[r, :held], where[r, :held], k, first_stay, count)
            else:  # the bracket missed
                low[r], high[r], counts[r] = -ONE, np.inf, 0
    return broken
