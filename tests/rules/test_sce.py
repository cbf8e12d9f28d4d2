import pytest
import torch
from _helpers.golden import golden_output, golden_vectors, largest_error
from _helpers.small_models import merged_row, one_tensor, quick, random_rows, sign, task_rows
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules.sce import SCE


def test_equals_the_reference():
    result = merge(golden_vectors("main"), MergeRecipe(rule=SCE(density=0.5)))
    assert largest_error(result, golden_output("sce.mk_0.5")) < 1e-6


def loop_sce(rows, density):
    tasks = len(rows)
    if density < 1:
        means = [sum(column) / tasks for column in zip(*rows, strict=True)]
        variances = [sum((row[i] - mean) ** 2 for row in rows) / tasks for i, mean in enumerate(means)]
        count = int(sum(variance > 0 for variance in variances) * density)
        # In the order of equal variances that mergekit has them in.
        selected = torch.tensor(variances).topk(count).indices.tolist()
        rows = [[value if i in selected else 0.0 for i, value in enumerate(row)] for row in rows]
    energies = [sum(value**2 for value in row) / len(row) for row in rows]
    weights = [energy / sum(energies) if sum(energies) else 1 / tasks for energy in energies]
    merged = []
    for column in zip(*rows, strict=True):
        elected = 1 if sum(column) >= 0 else -1
        agreeing = [(w, v) for w, v in zip(weights, column, strict=True) if sign(v) == elected]
        merged.append(sum(w * v for w, v in agreeing) / max(sum(w for w, _ in agreeing), 1e-6))
    return merged


@quick
@given(task_rows())
def test_weighs_and_erases(rows):
    assert merged_row(rows, "sce", one_tensor) == pytest.approx(loop_sce(rows, 1), abs=1e-6)


@pytest.mark.parametrize("density", [0.04, 0.3, 0.7, 0.99])
@pytest.mark.parametrize(("tasks", "size"), [(2, 9), (3, 25), (4, 40)])
def test_selects_by_variance(density, tasks, size):
    rows = random_rows(tasks, size, seed=size)
    for row in rows:
        row[3] = rows[0][3]  # no variance, so that it does not count
    result = merged_row(rows, SCE(density=density), one_tensor)
    assert result == pytest.approx(loop_sce(rows, density), abs=1e-5)


@quick
@given(task_rows(), st.sampled_from([0.25, 0.5]))
def test_of_equal_variances_those_are_selected_that_topk_selects(rows, density):
    rows = [[float(round(value * 8)) for value in row] for row in (rows * 4)[:4]]  # exact variances of four tasks
    assert merged_row(rows, SCE(density=density), one_tensor) == pytest.approx(loop_sce(rows, density), abs=1e-5)


def test_a_tied_vote_is_positive():
    assert merged_row([[1.0], [-1.0]], "sce", one_tensor) == [1.0]


def test_small_task_vectors_are_weighed_like_large_ones():
    rows = random_rows(3, 12)
    small = [[value * 1e-5 for value in row] for row in rows]
    expected = merged_row(rows, "sce", one_tensor)
    assert [1e5 * value for value in merged_row(small, "sce", one_tensor)] == pytest.approx(expected, rel=1e-4)


def test_one_task_has_no_variance_to_select_by():
    assert merged_row([[1.0, -2.0]], SCE(density=0.5), one_tensor) == [0.0, 0.0]
    assert merged_row([[1.0, -2.0]], SCE(), one_tensor) == [1.0, -2.0]


@pytest.mark.parametrize("density", [0, 1.5])
def test_refuses_what_is_no_fraction(density):
    with pytest.raises(ValueError, match="density"):
        SCE(density=density)
