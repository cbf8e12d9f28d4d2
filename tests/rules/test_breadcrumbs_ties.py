import pytest
from _helpers.small_models import merged_row, middle, one_tensor, quick, reduced, sign, task_rows
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning.rules.breadcrumbs import Breadcrumbs
from lwptv_lightning.rules.breadcrumbs_ties import BreadcrumbsTIES

REDUCE = st.sampled_from(["mean", "sum", "max"])


@quick
@given(task_rows(), st.sampled_from([0.1, 0.5, 0.85, 1.0]), st.sampled_from([0.0, 0.01, 0.1, 0.3]), REDUCE)
def test_elects_signs_among_the_middles(rows, density, outliers, reduce):
    columns = zip(*[middle(row, density, outliers) for row in rows], strict=True)
    expected = [reduced(column, sign(sum(column)) or 1, reduce) for column in columns]
    rule = BreadcrumbsTIES(density=density, outliers=outliers, reduce=reduce)
    assert merged_row(rows, rule, one_tensor) == pytest.approx(expected, abs=1e-6)


def test_a_tied_vote_is_positive():
    assert merged_row([[1.0], [-1.0]], BreadcrumbsTIES(density=1), one_tensor) == [1.0]


def test_one_task_is_breadcrumbs():
    row = [0.5, -3.0, 2.0, 1.0, -0.25, 4.0]
    ours = merged_row([row], BreadcrumbsTIES(density=0.5, outliers=0.2), one_tensor)
    assert ours == merged_row([row], Breadcrumbs(density=0.5, outliers=0.2), one_tensor)


@pytest.mark.parametrize("arguments", [{"density": 0}, {"outliers": 1.5}])
def test_refuses_values_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        BreadcrumbsTIES(**arguments)


def test_refuses_an_unknown_reduction():
    with pytest.raises(KeyError, match="reduce"):
        BreadcrumbsTIES(reduce="median")
