import pytest
from _helpers.golden import golden_output, golden_vectors, largest_error
from _helpers.small_models import merged_row, quick, task_rows
from hypothesis import given

from lwptv_lightning import MergeRecipe, merge


def test_equals_the_reference():
    result = merge(golden_vectors("main"), MergeRecipe(rule="magmax"))
    assert largest_error(result, golden_output("magmax.official_0.5")) < 1e-6


@quick
@given(task_rows())
def test_takes_the_largest_magnitude_and_the_later_of_equals(rows):
    def largest(column):
        return column[max(range(len(column)), key=lambda task: (abs(column[task]), task))]

    assert merged_row(rows, "magmax") == [largest(column) for column in zip(*rows, strict=True)]


@quick
@given(task_rows())
def test_a_task_given_twice_changes_nothing(rows):
    assert merged_row([*rows, rows[-1]], "magmax") == merged_row(rows, "magmax")


def test_it_is_no_sum_over_tasks():
    with pytest.raises(ValueError, match="needs a rule that is a sum over tasks"):
        MergeRecipe(rule="magmax", prune_on="parts")
