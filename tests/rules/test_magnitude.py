import pytest
from _helpers.golden import golden_output, golden_vectors, largest_error
from _helpers.small_models import merged_row, one_tensor, quick, task_rows, trimmed
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules.magnitude import Magnitude

DENSITY = st.sampled_from([0.05, 0.2, 0.5, 0.99, 1.0])


def test_equals_the_reference():
    result = merge(golden_vectors("main"), MergeRecipe(rule="magnitude"))
    assert largest_error(result, golden_output("magnitude.tall_global")) < 1e-6


@quick
@given(task_rows(), DENSITY)
def test_adds_what_a_trim_over_the_model_keeps(rows, density):
    expected = [sum(column) for column in zip(*[trimmed(row, density) for row in rows], strict=True)]
    assert merged_row(rows, Magnitude(density=density)) == pytest.approx(expected)


@quick
@given(task_rows(), DENSITY)
def test_by_tensor_it_keeps_an_exact_count_and_the_first_of_equals(rows, density):
    def kept(row):
        largest = sorted(range(len(row)), key=lambda index: (-abs(row[index]), index))[: int(len(row) * density)]
        return [value if index in largest else 0.0 for index, value in enumerate(row)]

    expected = [sum(column) for column in zip(*map(kept, rows), strict=True)]
    assert merged_row(rows, Magnitude(density=density, scope="tensor"), one_tensor) == pytest.approx(expected)


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_parts_are_pruned_like_task_vectors_where_a_mask_drops_nothing(scope):
    vectors, rule = golden_vectors("main"), Magnitude(scope=scope)
    on_parts = merge(vectors, MergeRecipe(rule=rule, prune_on="parts"))
    assert largest_error(on_parts, merge(vectors, MergeRecipe(rule=rule))) < 1e-6


def test_refuses_a_density_of_zero():
    with pytest.raises(ValueError, match="density"):
        Magnitude(density=0)
