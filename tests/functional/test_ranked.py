import pytest
import torch
from _helpers.small_models import middle

from lwptv_lightning.functional import keep_middle_, kth_smallest, ranked_values, sample_margins

SHAPES_OF_VALUES = {
    "normal": lambda noise: noise,
    "many ties": lambda noise: (noise * 4).round(),
    "many zeros": lambda noise: noise * (noise > 1.5),
    "sorted, which a sample of every n-th value sees well": lambda noise: noise.sort().values,
}


@pytest.mark.parametrize("shape", SHAPES_OF_VALUES.values(), ids=SHAPES_OF_VALUES)
@pytest.mark.parametrize("count", [1, 7, 50_001])  # the last is searched by a sample
def test_the_kth_smallest_is_that_of_a_full_sort(shape, count):
    values = shape(torch.randn(count, generator=torch.Generator().manual_seed(0)))
    orders = sorted({1, 1 + count // 5, 1 + count // 2, count})
    expected = [float(values.sort().values[k - 1]) for k in orders]
    assert ranked_values(values, orders) == expected
    assert kth_smallest(values, orders) == expected


def test_a_sample_that_misses_costs_no_accuracy():
    # Every third value is tiny, and these are what the sample consists of.
    values = torch.arange(60_000.0)
    values[::3] = -values[::3]
    ordered = values.sort().values
    orders = [1, 15_000, 30_000, 45_000, 60_000]
    assert ranked_values(values, orders) == [float(ordered[k - 1]) for k in orders]


def test_nothing_is_wanted():
    assert kth_smallest(torch.zeros(3), []) == []


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.99])
def test_the_margins_of_a_sample_hold_the_rank_they_are_made_for(fraction):
    total, size = 100_000, 2000
    for seed in range(50):
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:size].sort().values
        low, high = sample_margins(int(fraction * total), total, size)
        ranks = [float(order[min(max(place, 1), size) - 1]) for place in (low, high)]
        assert low < fraction * size < high
        assert ranks[0] <= fraction * total <= ranks[1] or low < 1 or high > size


@pytest.mark.parametrize("ties", [False, True])
def test_long_rows_are_searched_by_a_sample_with_the_same_result(ties):
    row = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    row = (row * 4).round() if ties else row
    assert keep_middle_(row.clone()[None], 0.85, 0.01)[0].tolist() == middle(row.tolist(), 0.85, 0.01)
