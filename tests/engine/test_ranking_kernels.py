"""Order statistics of kernels against full sorts, where samples help and where they mislead."""

import numpy as np
import pytest
import torch
from _helpers.kernels import SIZES, Rows, everything, sorted_magnitudes

from lwptv_lightning.engine import Program, Threads, begin_limits
from lwptv_lightning.engine.fused import gather_fused
from lwptv_lightning.engine.program import Above, Between, Drop
from lwptv_lightning.functional import random_keep

SAMPLED = (4 << 15) + 37
"""Elements of a tensor that is so large that brackets are estimated; every fourth one is looked at for that."""


def values_of(shape, size):
    generator = torch.Generator().manual_seed(size)
    values = torch.randn(size, generator=generator)
    if shape == "coarse":
        return (values * 2).round()
    if shape == "zeros":
        return values * (torch.rand(size, generator=generator) < 0.1)
    if shape == "equal":
        return values.sign() * 2.5
    if shape == "huge and tiny":
        return values * 10 ** (40 * values.sign())
    if shape.startswith("misleading"):  # what the sample sees is far from all the rest, above or below
        values = values.abs() + 2
        values[::4] *= 1e-3 if shape.endswith("low") else 1e3
    return values


SHAPES = ("normal", "coarse", "zeros", "equal", "misleading low", "misleading high")


def kept_by_sort(row, ranks, first_stay):
    """Mark what ranks above each of some numbers of values; of equal magnitudes the first rank lower, or higher."""
    places = np.arange(len(row))
    ascending = np.lexsort((-places if first_stay else places, np.abs(row)))
    masks = []
    for k in ranks:
        mask = np.zeros(len(row), bool)
        mask[ascending[k:]] = True
        masks.append(mask)
    return masks


def kept_by_limits(row, values, places, first_stay):
    """Mark the same by what a kernel found."""
    position, size = np.arange(len(row)), np.abs(row)
    for value, place in zip(values, places, strict=True):
        at_limit = position < place if first_stay else position >= place
        yield (size > value) | ((size == value) & at_limit)


@pytest.mark.parametrize("size", [*SIZES, SAMPLED])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("limits", [Above(0.2), Above(1.0), Above(1e-9), Between(0.5, 0.1), Between(0.9, 0.5)], ids=str)
def test_limits_are_those_of_a_full_sort(limits, shape, size):
    rows = [values_of(shape, size), values_of("normal", size)]
    stack, program = Rows([rows[0], None, rows[1]]), Program(3, limits=limits)
    _, values, places = begin_limits(Threads(1).submit, program, stack)()
    first_stay, ranks = isinstance(limits, Above), limits.ranks(size)
    assert values.shape == places.shape == (len(ranks), 3)
    for column, row in ((0, rows[0].numpy()), (2, rows[1].numpy())):
        expected = kept_by_sort(row, ranks, first_stay)
        found = kept_by_limits(row, values[:, column], places[:, column], first_stay)
        for mask, other in zip(found, expected, strict=True):
            assert np.array_equal(mask, other)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_search_among_values_that_are_not_finite_ends(value):
    row = values_of("normal", SAMPLED)
    row[::4] = value  # all that the sample sees
    stack = Rows([row])
    with pytest.raises(Exception, match="^$") as caught:
        begin_limits(Threads(1).submit, Program(1, limits=Above(0.5)), stack)()
    assert caught.type.__name__ == "UnfusableError"


@pytest.mark.parametrize("size", [*SIZES, 5000])
@pytest.mark.parametrize("shape", ["normal", "coarse", "zeros", "equal"])
def test_magnitudes_around_brackets_are_counted_and_gathered(shape, size):
    rows = np.stack([values_of(shape, size).numpy(), values_of("coarse", size).numpy()])
    stack = Rows([torch.from_numpy(row) for row in rows])
    infinity = np.float32(np.inf)
    for ends in ((-1, infinity), (0, 2), (0.5, 2.5), (2, 2), (2.5, infinity), (100, infinity), (-infinity, -1)):
        low, high = (np.full(2, end, np.float32) for end in ends)
        counts, inside = gather_fused(Program(2), stack, everything(stack), low, high)
        for row, (below, lowest), found in zip(rows, counts, inside, strict=True):
            magnitudes = sorted_magnitudes(row)
            assert below == (magnitudes < ends[0]).sum()
            assert lowest == (magnitudes == ends[0]).sum()
            expected = magnitudes[(magnitudes > ends[0]) & (magnitudes <= ends[1])]
            assert np.array_equal(np.sort(found), expected)


@pytest.mark.parametrize("low", [-1.0, 0.0, 1.0])
def test_a_pruned_row_is_all_zeros(low):
    stack = Rows([torch.ones(1500), None])
    ends = np.full(2, low, np.float32), np.full(2, 3, np.float32)
    counts, inside = gather_fused(Program(2), stack, everything(stack), *ends)
    assert counts[1].tolist() == [1500 * (low > 0), 1500 * (low == 0)]
    assert inside[1].tolist() == [0.0] * 1500 * (low < 0)


def test_dropped_values_are_searched():
    row = values_of("normal", 3000)
    stack = Rows([row], first=70)
    drop = Drop(0.25, 1, ("a",), "w")
    ends = np.zeros(1, np.float32), np.ones(1, np.float32)
    counts, (found,) = gather_fused(Program(1, drop=drop), stack, everything(stack), *ends)
    dropped = sorted_magnitudes(row * random_keep(3000, 0.25, 1, ("a",), "w", start=70)[0] / 0.25)
    assert counts[0].tolist() == [0, (dropped == 0).sum()]
    assert np.array_equal(np.sort(found), dropped[(dropped > 0) & (dropped <= 1)])
