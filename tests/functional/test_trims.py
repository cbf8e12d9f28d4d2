import pytest
import torch
from _helpers.golden import golden_vectors
from _helpers.small_models import quick, task_rows
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning.engine import Stream
from lwptv_lightning.functional import as_rows, keep_largest_, keep_middle_, trim_
from lwptv_lightning.rules._trim import smallest_kept, trim_thresholds


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.999, 1.0])
def test_a_trim_keeps_one_more_than_the_fraction(density):
    vectors = Stream.of(golden_vectors("pair", [1]))
    count = vectors.elements
    kept = trim_(every_row(vectors), trim_thresholds(vectors, density)).count_nonzero()
    assert kept == min(int(count * density) + 1, count)
    assert smallest_kept(count, density) == max(count - int(count * density), 1)


def every_row(vectors):
    return torch.cat([as_rows(vectors.stack(name)) for name in vectors.names], dim=1)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 4)])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_selections_work_on_any_shape(shape, density):
    assert keep_largest_(torch.ones((2, *shape)), density).shape == (2, *shape)
    assert keep_middle_(torch.ones((2, *shape)), density).shape == (2, *shape)


def middle(row, density, outliers):
    """Sort, and drop from both ends."""
    ascending = sorted(range(len(row)), key=lambda index: (abs(row[index]), index))
    kept = int(density * len(row))
    smallest = max(len(row) - kept - int(outliers * len(row)), 0)
    chosen = ascending[smallest : smallest + kept]
    return [value if index in chosen else 0.0 for index, value in enumerate(row)]


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


@pytest.mark.parametrize("ties", [False, True])
def test_long_rows_are_searched_by_a_sample_with_the_same_result(ties, monkeypatch):
    row = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    row = (row * 4).round() if ties else row
    exact = keep_middle_(row.clone()[None], 0.85, 0.01)
    monkeypatch.setattr("lwptv_lightning.functional.ranked._SMALL_SAMPLE", 200)
    assert torch.equal(keep_middle_(row.clone()[None], 0.85, 0.01), exact)
    assert exact[0].tolist() == middle(row.tolist(), 0.85, 0.01)
