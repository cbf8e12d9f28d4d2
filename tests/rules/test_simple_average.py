import pytest
from _helpers.golden import golden_output, golden_vectors, largest_error
from _helpers.small_models import merged_row, quick, task_rows
from hypothesis import given

from lwptv_lightning import MergeRecipe, merge


def test_equals_the_reference():
    result = merge(golden_vectors("main"), MergeRecipe(rule="simple_average"))
    assert largest_error(result, golden_output("simple_average.fb")) < 1e-6


@quick
@given(task_rows())
def test_is_the_mean_of_each_weight(rows):
    expected = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    assert merged_row(rows, "simple_average") == pytest.approx(expected, abs=1e-6)
