"""A compiled kernel that sums up what saliency scores are made of; see `lwptv_lightning.engine.kernels`."""

from __future__ import annotations

import numpy as np

from lwptv_lightning.engine.loops import ONE, TILE, ZERO, add, f32, fill, kernel, load, load_row, loop, reduction


@reduction
def _dot(row, other, n):
    total = ZERO
    for i in range(n):
        total += row[i] * other[i]
    return total


@reduction
def _squares(row, n):
    total = 0.0
    for i in range(n):
        total += np.float64(row[i]) * np.float64(row[i])
    return total


@reduction
def _votes(row, total, n):
    """Sum up magnitudes, and count the values with the sign of the total and those with the opposite one."""
    size, agreeing, opposing = ZERO, ZERO, ZERO
    for i in range(n):
        x, y = row[i], total[i]
        size += abs(x)
        agreeing += ONE if ((x > ZERO) & (y > ZERO)) | ((x < ZERO) & (y < ZERO)) else ZERO
        opposing += ONE if ((x > ZERO) & (y < ZERO)) | ((x < ZERO) & (y > ZERO)) else ZERO
    return size, agreeing, opposing


@reduction
def _deviations(row, first, centre, mean, n):
    """Sum up squares of deviations from the mean, and their products with it."""
    squares, products = ZERO, ZERO
    for i in range(n):
        deviation = (row[i] - first[i]) - centre[i]
        squares += deviation * deviation
        products += deviation * mean[i]
    return squares, products


@loop
def _add_difference(row, first, total, n):
    for i in range(n):
        total[i] += row[i] - first[i]


@loop
def _divide(total, mean, divisor, n):
    for i in range(n):
        mean[i] = total[i] / divisor


@kernel
def statistics(sources, gram, sums):
    """Sum up a block in float32 tile by tile, and tiles in float64.

    Args:
        sources: As for every kernel.
        gram: Receives inner products, ``(T, T)`` float64.
        sums: Receives, for each task, L1 norm, agreeing, opposing, squares of deviations and their products with the
            mean, ``(5, T)`` float64.

    Returns:
        The sum of the base's squares, and whether a value of the sources is NaN or infinite.
    """
    addresses, kinds, base_address, base_kind, _, count = sources
    tasks = len(addresses)
    rows, base, total = np.empty((tasks, TILE), f32), np.empty(TILE, f32), np.empty(TILE, f32)
    mean, centre = np.empty(TILE, f32), np.empty(TILE, f32)
    base_squared, broken = 0.0, False
    for offset in range(0, count, TILE):
        n = min(TILE, count - offset)
        load(base_address, base_kind, offset, base, n)
        base_squared += _squares(base, n)
        fill(total, ZERO, n)
        fill(centre, ZERO, n)
        for task in range(tasks):
            broken |= load_row(addresses[task], kinds[task], offset, base, rows[task], n)
            add(rows[task], total, n)
            # Relative to the first task, so that equal task vectors deviate by nothing at all.
            _add_difference(rows[task], rows[0], centre, n)
        _divide(total, mean, f32(tasks), n)
        _divide(centre, centre, f32(tasks), n)
        for task in range(tasks):
            row = rows[task]
            size, agreeing, opposing = _votes(row, total, n)
            squares, products = _deviations(row, rows[0], centre, mean, n)
            sums[0, task] += size
            sums[1, task] += agreeing
            sums[2, task] += opposing
            sums[3, task] += squares
            sums[4, task] += products
            for other in range(task + 1):
                gram[task, other] += _dot(row, rows[other], n)
    for task in range(tasks):
        for other in range(task):
            gram[other, task] = gram[task, other]
    return base_squared, broken
