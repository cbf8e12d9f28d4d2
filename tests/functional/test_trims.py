import pytest
import torch
from _helpers.small_models import middle, quick, task_rows
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning.functional import keep_largest_, keep_middle_


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4)])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_selections_work_on_any_shape(shape, density):
    assert keep_largest_(torch.ones((2, *shape)), density).shape == (2, *shape)
    assert keep_middle_(torch.ones((2, *shape)), density).shape == (2, *shape)


@quick
@given(task_rows(), st.sampled_from([0.1, 0.5, 0.85, 1.0]), st.sampled_from([0.0, 0.01, 0.3, 1.0]))
def test_the_middle_is_that_of_a_sorted_row(rows, density, outliers):
    result = keep_middle_(torch.tensor(rows), density, outliers)
    assert result.tolist() == [middle(row, density, outliers) for row in torch.tensor(rows).tolist()]


@quick
@given(task_rows(), st.sampled_from([0.1, 0.5, 1.0]))
def test_the_largest_are_those_of_a_sorted_row(rows, density):
    def largest(row):
        descending = sorted(range(len(row)), key=lambda index: (-abs(row[index]), index))
        kept = set(descending[: int(len(row) * density)])
        return [value if index in kept else 0.0 for index, value in enumerate(row)]

    result = keep_largest_(torch.tensor(rows), density)
    assert result.tolist() == [largest(row) for row in torch.tensor(rows).tolist()]
