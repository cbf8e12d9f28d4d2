import pytest
from _helpers.golden import golden_output, golden_vectors, largest_error
from _helpers.small_models import merged_row, quick, task_rows
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules.task_arithmetic import TaskArithmetic


def test_equals_the_reference():
    result = merge(golden_vectors("main"), MergeRecipe(rule="task_arithmetic"))
    assert largest_error(result, golden_output("task_arithmetic.fb_0.3")) < 1e-6


@quick
@given(task_rows(), st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=4, max_size=4))
def test_adds_multiples_of_the_task_vectors(rows, coefficients):
    coefficients = coefficients[: len(rows)]
    expected = [sum(c * v for c, v in zip(coefficients, column, strict=True)) for column in zip(*rows, strict=True)]
    assert merged_row(rows, TaskArithmetic(coefficients=coefficients)) == pytest.approx(expected)
    assert merged_row(rows, "task_arithmetic") == pytest.approx([sum(column) for column in zip(*rows, strict=True)])


def test_default_scale_depends_on_the_coefficients():
    assert MergeRecipe(rule=TaskArithmetic()).effective_scale == 0.3
    assert MergeRecipe(rule=TaskArithmetic(coefficients=(1, 2))).effective_scale == 1


def test_refuses_another_number_of_coefficients():
    with pytest.raises(ValueError, match="coefficients holds 1 values"):
        merged_row([[1.0], [2.0]], TaskArithmetic(coefficients=(1,)))
