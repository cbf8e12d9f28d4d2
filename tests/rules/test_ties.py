import pytest
import torch
from _helpers.golden import golden_output, golden_vectors, largest_error
from _helpers.small_models import merged_row, one_tensor, quick, reduced, sign, task_rows, ties
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules import MergeContext
from lwptv_lightning.rules.ties import TIES

DENSITY = st.sampled_from([0.05, 0.2, 0.5, 0.99, 1.0])
REDUCE = st.sampled_from(["mean", "sum", "max"])


@pytest.mark.parametrize(
    ("inputs", "density", "name"),
    [("main", 0.2, "ties.official_mean"), ("edge", 0.5, "ties.official@edge")],
)
def test_equals_the_reference(inputs, density, name):
    result = merge(golden_vectors(inputs), MergeRecipe(rule=TIES(density=density)))
    assert largest_error(result, golden_output(name)) < 1e-6


@quick
@given(task_rows(), DENSITY, REDUCE)
def test_trims_elects_and_merges_over_the_whole_model(rows, density, reduce):
    expected = ties(rows, density, reduce)
    assert merged_row(rows, TIES(density=density, reduce=reduce)) == pytest.approx(expected, abs=1e-6)


@quick
@given(task_rows(), DENSITY, REDUCE)
def test_by_tensor_it_keeps_an_exact_count_and_a_tied_vote_is_positive(rows, density, reduce):
    def kept(row):
        largest = sorted(range(len(row)), key=lambda index: (-abs(row[index]), index))[: int(len(row) * density)]
        return [value if index in largest else 0.0 for index, value in enumerate(row)]

    columns = zip(*map(kept, rows), strict=True)
    expected = [reduced(column, sign(sum(column)) or 1, reduce) for column in columns]
    result = merged_row(rows, TIES(density=density, reduce=reduce, scope="tensor"), one_tensor)
    assert result == pytest.approx(expected, abs=1e-6)


def test_a_trim_keeps_one_more_than_the_fraction_and_all_ties():
    assert merged_row([[1.0, 2.0, 3.0, 4.0]], TIES(density=0.5)) == [0.0, 2.0, 3.0, 4.0]
    assert merged_row([[1.0, 2.0, 2.0, 2.0, 4.0]], TIES(density=0.2)) == [0.0, 2.0, 2.0, 2.0, 4.0]


def test_a_tied_vote_takes_the_sign_of_the_majority_and_else_minus():
    assert merged_row([[1.0, 2.0], [-1.0, 2.0]], TIES(density=1)) == [1.0, 2.0]
    assert merged_row([[1.0, -2.0], [-1.0, -2.0]], TIES(density=1)) == [-1.0, -2.0]
    assert merged_row([[1.0, -2.0], [-1.0, 2.0]], TIES(density=1)) == [-1.0, -2.0]


@quick
@given(task_rows(), DENSITY)
def test_the_order_of_tasks_does_not_matter(rows, density):
    assert merged_row(rows, TIES(density=density)) == pytest.approx(merged_row(rows[::-1], TIES(density=density)))


def test_float64_gives_the_same_choice():
    vectors, recipe = golden_vectors("main"), MergeRecipe(rule="ties")
    assert largest_error(merge(vectors, recipe, dtype=torch.float64), merge(vectors, recipe)) < 1e-6


@pytest.mark.parametrize("density", [0, -0.1, 1.5, 20])
def test_refuses_what_is_no_fraction(density):
    with pytest.raises(ValueError, match=r"density must be a number in \(0, 1\]"):
        TIES(density=density)


@pytest.mark.parametrize("arguments", [{"reduce": "median"}, {"scope": "row"}])
def test_refuses_unknown_choices(arguments):
    with pytest.raises(KeyError, match=next(iter(arguments))):
        TIES(**arguments)


@pytest.mark.parametrize(("reduce", "expected"), [("mean", [-1.0, -2.0]), ("sum", [-1.0, -2.0]), ("max", [0.0, 0.0])])
def test_where_no_sign_is_elected_at_all_the_maximum_keeps_nothing(reduce, expected):
    assert merged_row([[1.0, 2.0], [-1.0, -2.0]], TIES(density=1.0, reduce=reduce)) == expected


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        ("mean", [[2.0, -2.0, 0.0], [1.0, 0.0, 3.0]]),
        ("sum", [[4.0, -2.0, 0.0], [2.0, 0.0, 3.0]]),
        ("max", [[4.0, -2.0, 0.0], [0.0, 0.0, 3.0]]),
    ],
)
def test_each_task_has_what_agrees_of_it(reduce, expected):
    tau = torch.tensor([[4.0, -2.0, -1.0], [2.0, 1.0, 3.0]])
    made = TIES(density=1, reduce=reduce, scope="tensor").parts(tau, MergeContext("w", ("a", "b")))
    assert made.tolist() == expected
