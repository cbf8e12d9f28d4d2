import pytest
from _helpers.golden import golden_output, golden_vectors, largest_error
from _helpers.small_models import merged_row, middle, one_tensor, quick, task_rows
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules.breadcrumbs import Breadcrumbs


def test_equals_the_reference():
    result = merge(golden_vectors("main"), MergeRecipe(rule=Breadcrumbs(density=0.6, outliers=0.1)))
    assert largest_error(result, golden_output("breadcrumbs.mk_g.1")) < 1e-6


@quick
@given(task_rows(), st.sampled_from([0.1, 0.5, 0.85, 1.0]), st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0]))
def test_adds_the_middle_of_each_tensor(rows, density, outliers):
    expected = [sum(column) for column in zip(*[middle(row, density, outliers) for row in rows], strict=True)]
    assert merged_row(rows, Breadcrumbs(density=density, outliers=outliers), one_tensor) == pytest.approx(expected)


def test_a_small_tensor_loses_no_outlier_and_is_not_emptied():
    row = [float(value) for value in range(1, 33)]
    assert sum(value != 0 for value in merged_row([row], Breadcrumbs(density=0.5), one_tensor)) == 16
    assert merged_row([row], Breadcrumbs(density=0.5), one_tensor)[-1] == 32


def test_outliers_give_way_to_the_density():
    assert merged_row([[1.0, 2.0, 3.0, 4.0]], Breadcrumbs(density=0.75, outliers=0.5), one_tensor) == [1, 2, 3, 0]
    assert merged_row([[1.0, 2.0, 3.0, 4.0]], Breadcrumbs(density=1, outliers=0.5), one_tensor) == [1, 2, 3, 4]


def test_of_equal_magnitudes_the_first_rank_lower():
    assert merged_row([[1.0, -1.0, 1.0, -1.0]], Breadcrumbs(density=0.5, outliers=0.25), one_tensor) == [0, -1, 1, 0]


@pytest.mark.parametrize("arguments", [{"density": 0}, {"outliers": 1.5}, {"outliers": -0.1}])
def test_refuses_values_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Breadcrumbs(**arguments)
