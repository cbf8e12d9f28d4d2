import pytest
from _helpers.golden import golden_output, golden_vectors, largest_error
from _helpers.small_models import merged_row, quick, task_rows
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules.weighted_average import WeightedAverage

POSITIVE = st.sampled_from([0.5, 1.0, 2.0, 3.0])


def test_equals_the_reference():
    rule = WeightedAverage(weights=(1, 2, 3, 0.5))
    result = merge(golden_vectors("main"), MergeRecipe(rule=rule))
    assert largest_error(result, golden_output("weighted_average.mk_norm")) < 1e-6


@quick
@given(task_rows(), st.lists(POSITIVE, min_size=4, max_size=4), st.booleans())
def test_weighs_each_task(rows, weights, normalize):
    weights = weights[: len(rows)]
    divisor = sum(weights) if normalize else 1
    expected = [
        sum(w * v for w, v in zip(weights, column, strict=True)) / divisor for column in zip(*rows, strict=True)
    ]
    rule = WeightedAverage(weights=weights, normalize=normalize)
    assert merged_row(rows, rule) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_without_weights_it_is_the_simple_average(normalize):
    rows = [[1.0, 2.0], [3.0, -4.0]]
    assert merged_row(rows, WeightedAverage(normalize=normalize)) == [2.0, -1.0]


def test_weights_may_be_negative():
    assert merged_row([[1.0], [2.0]], WeightedAverage(weights=(2, -1))) == [0.0]


@pytest.mark.parametrize("weights", [(1, -1), (0, 0), (0.1, 0.2, -0.3)])
def test_refuses_to_normalize_by_zero(weights):
    with pytest.raises(ValueError, match="weights must not sum to 0"):
        WeightedAverage(weights=weights)
    WeightedAverage(weights=weights, normalize=False)


def test_refuses_another_number_of_weights():
    with pytest.raises(ValueError, match="weights holds 3 values, expected one for each of 2 tasks"):
        merged_row([[1.0], [2.0]], WeightedAverage(weights=(1, 2, 3)))
