"""Compiled kernels over task vectors: each reads every byte of a block once and stays in the processor's cache.

A kernel works through a block in tiles. For each tile it makes the T rows ``source - base`` in float32 and applies the
steps of a program to them, row by row and in the order in which torch would: results are the same to the bit. Only the
sums over elements in `statistics` are taken in another order.

Arguments that kernels share:

* ``sources``: ``addresses`` ``(T,)`` int64, where the first element of each source lies in memory; ``kinds`` ``(T,)``
  int64, what each is; the base's address and kind; the position of the first element in the flattened tensor; and how
  many there are.
* ``drop``: the words that key the draws of each row, ``(T, 2)`` int64, ``(0, 2)`` for no drop; what a draw must be
  below; the density. See `lwptv_lightning.functional.random_keep`.
* ``limits``: which values stay by their magnitude; the magnitudes, ``(1 or 2, T)``; and the places in the tensor from
  which on, or before which, values of just that magnitude stay.

Kernels hold no lock of the interpreter. They are compiled when first called, and numba keeps them on the disk.
"""

from __future__ import annotations

import numpy as np

from lwptv_lightning.engine.loops import (
    NO_TERM,
    TILE,
    ZERO,
    add,
    add_agreeing,
    add_to_base,
    average,
    copy,
    count_mattering,
    drop_at_random,
    elect,
    f32,
    fill,
    i64,
    inside,
    keep_above,
    keep_between,
    keep_counted,
    kernel,
    load,
    load_row,
    loop,
    multiply,
    take_larger,
    total,
    trim,
    u32,
    unusual,
    weigh,
)
from lwptv_lightning.engine.program import (
    ABOVE,
    BETWEEN,
    LARGEST_OF_AGREEING,
    MEAN_OF_AGREEING,
    NOTHING,
    SUM,
    TRIM,
)


@loop
def drop_row(row, task, position, drop, n):
    """Apply a random drop to one row, of which the first element has a position."""
    keys, limit, density = drop
    if len(keys):
        drop_at_random(row, u32(keys[task, 0] + position), u32(keys[task, 1]), u32(limit), density, n)


@loop
def _limit_row(row, task, position, limits, n):
    """Keep what the limits of a task leave of one row."""
    kind, values, places = limits
    if kind == TRIM:
        trim(row, values[0, task], n)
    elif kind == BETWEEN:
        low, high = inside(places[0, task], position), inside(places[1, task], position)
        keep_between(row, values[0, task], low, values[1, task], high, n)
    elif kind == ABOVE:
        keep_above(row, values[0, task], inside(places[0, task], position), n)


@loop
def _agree(rows, mode, tie, merged, signs, directions, counts, n):
    """Elect signs by the sums of the rows, and reduce the values that agree in place of these."""
    elect(merged, tie, signs, directions, n)
    fill(merged, ZERO if mode == LARGEST_OF_AGREEING else NO_TERM, n)
    fill(counts, ZERO, n)
    for task in range(len(rows)):
        if mode == LARGEST_OF_AGREEING:
            take_larger(rows[task], directions, merged, n)
        else:
            add_agreeing(rows[task], directions, merged, counts, n)
    multiply(merged, signs if mode == LARGEST_OF_AGREEING else directions, n)
    if mode == MEAN_OF_AGREEING:
        average(merged, counts, n)


@kernel
def combine(sources, drop, limits, weights, reduction, consensus, scale, out):
    """Merge a block into ``out`` ``(n,)``; add ``scale`` times the result to the base, unless ``scale`` is NaN.

    Args:
        sources, drop, limits: As for every kernel.
        weights: A number for each row, ``(T,)``, or ``(0,)``; and whether rows are divided by it, not multiplied.
        reduction: How the rows become one, and the sign elected where they cancel.
        consensus: ``tall_lambda``, below 0 for no consensus, and to how many tasks an element must matter.
        scale: The scaling coefficient.
        out: Receives float32 values.

    Returns:
        Whether a value is NaN or infinite, of the sources or of the result.
    """
    addresses, kinds, base_address, base_kind, start, count = sources
    factors, divides = weights
    mode, tie = reduction
    tall_lambda, least = consensus
    tasks = len(addresses)
    rows, whole = np.empty((tasks, TILE), f32), np.empty((tasks if tall_lambda >= 0 else 0, TILE), f32)
    base, merged, counts = np.empty(TILE, f32), np.empty(TILE, f32), np.empty(TILE, f32)
    signs, directions = np.empty(TILE, f32), np.empty(TILE, f32)
    broken = False
    for offset in range(0, count, TILE):
        n = min(TILE, count - offset)
        load(base_address, base_kind, offset, base, n)
        fill(merged, NO_TERM, n)
        for task in range(tasks):
            row = rows[task]
            broken |= load_row(addresses[task], kinds[task], offset, base, row, n)
            if len(whole):
                copy(row, whole[task], n)
            drop_row(row, task, start + offset, drop, n)
            _limit_row(row, task, start + offset, limits, n)
            if len(factors):
                weigh(row, factors[task], divides, n)
            add(row, merged, n)
        if mode != SUM:
            _agree(rows, mode, tie, merged, signs, directions, counts, n)
        if len(whole):
            fill(counts, ZERO, n)
            for task in range(tasks):
                count_mattering(whole[task], merged, tall_lambda, counts, n)
            keep_counted(merged, counts, least, n)
        target = out[offset : offset + n]
        if np.isnan(scale):
            copy(merged, target, n)
        else:
            add_to_base(base, merged, scale, target, n)
        broken |= unusual(target, n) != ZERO
    return broken


@kernel
def vote(sources, drop, limits):
    """Add up the signs of the sums over tasks, after a drop and a trim.

    Returns:
        The sum, and whether a value of the sources is NaN or infinite.
    """
    addresses, kinds, base_address, base_kind, start, count = sources
    row, base, votes = np.empty(TILE, f32), np.empty(TILE, f32), np.empty(TILE, f32)
    signs, directions = np.empty(TILE, f32), np.empty(TILE, f32)
    net, broken = 0, False
    for offset in range(0, count, TILE):
        n = min(TILE, count - offset)
        load(base_address, base_kind, offset, base, n)
        fill(votes, ZERO, n)
        for task in range(len(addresses)):
            if kinds[task] == NOTHING:
                continue
            broken |= load_row(addresses[task], kinds[task], offset, base, row, n)
            drop_row(row, task, start + offset, drop, n)
            _limit_row(row, task, start + offset, limits, n)
            add(row, votes, n)
        elect(votes, ZERO, signs, directions, n)
        net += i64(total(signs, n))  # exact, as signs are and there are few
    return net, broken
