import operator

import pytest
import torch
from _helpers.small_models import in_consensus, quick, task_rows
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning.functional import compare, count_true, magnitude_probabilities, positions, select, tall_masks


@quick
@given(task_rows(), st.sampled_from([operator.lt, operator.le, operator.gt]), st.sampled_from([-0.625, 0.0, 1.0]))
def test_comparisons_counts_and_selections_are_those_of_a_loop(rows, operation, limit):
    values = torch.tensor(rows)
    mask = compare(operation, values, limit)
    assert mask.dtype == torch.bool
    expected = [[operation(value, limit) for value in row] for row in rows]
    assert mask.tolist() == expected
    assert count_true(mask).tolist() == [sum(row) for row in expected]
    assert select(values, mask).tolist() == [value for row in rows for value in row if operation(value, limit)]
    assert positions(mask[0]).tolist() == [index for index, true in enumerate(expected[0]) if true]


def test_limits_are_broadcast():
    values = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    assert compare(operator.lt, values, torch.tensor([[1.5], [5.0]])).tolist() == [[True, False], [True, True]]


def slow_probabilities(row, density, epsilon):
    if len(row) == 1:
        return [density]
    ascending = sorted(range(len(row)), key=lambda index: (abs(row[index]), index))
    step = 2 * epsilon / (len(row) - 1)
    return [density - epsilon + step * ascending.index(index) for index in range(len(row))]


@quick
@given(task_rows(), st.sampled_from([(0.5, 0.25), (0.3, 0.0), (0.9, 0.1)]))
def test_probabilities_grow_with_the_rank_of_the_magnitude(rows, window):
    found = magnitude_probabilities(torch.tensor(rows), *window)
    expected = torch.tensor([slow_probabilities(row, *window) for row in rows])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4)])
def test_each_row_of_a_matrix_is_ranked_by_itself(shape):
    tau = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    found = magnitude_probabilities(tau, 0.5, 0.2)
    rows = tau.reshape(-1, tau[0, 0].numel()).tolist()
    expected = torch.tensor([slow_probabilities(row, 0.5, 0.2) for row in rows]).reshape(tau.shape)
    torch.testing.assert_close(found, expected)


@quick
@given(task_rows(), st.sampled_from([0.0, 0.4, 1.0]))
def test_weights_that_matter_are_those_of_a_loop(rows, tall_lambda):
    tau = torch.tensor(rows)
    merged = tau.sum(0)
    masks = tall_masks(tau, merged, tall_lambda)
    for index in range(len(rows[0])):
        kept = in_consensus(rows, merged.tolist(), tall_lambda, int(masks[:, index].sum()) + 1)
        assert kept[index] == 0
        kept = in_consensus(rows, merged.tolist(), tall_lambda, int(masks[:, index].sum()))
        assert kept[index] == merged[index]
