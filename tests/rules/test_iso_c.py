import numpy as np
import pytest
import torch
from _helpers.golden import golden_output, golden_vectors, largest_error
from _helpers.small_matrices import SHAPES, as_floats, assert_near, merged_stack, polar, random_stack

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules import MergeContext
from lwptv_lightning.rules.iso_c import IsoC

EXCLUDED = IsoC(exclude=("text_projection",))


def test_equals_the_reference():
    result = merge(golden_vectors("main"), MergeRecipe(rule=EXCLUDED))
    assert largest_error(result, golden_output("iso_c.official")) < 1e-5


def test_exclusion_concerns_the_excluded_tensors_alone():
    vectors = golden_vectors("main")
    excluded, all_of_them = (merge(vectors, MergeRecipe(rule=rule)) for rule in (EXCLUDED, "iso_c"))
    differing = [name for name in excluded if not torch.equal(excluded[name], all_of_them[name])]
    assert differing == ["text_projection"]
    average = vectors.base("text_projection") + vectors.stack("text_projection").mean(0)
    torch.testing.assert_close(excluded["text_projection"], average)


def loop_iso_c(matrices):
    total = sum(matrices)
    # Singular values are the square roots of the eigenvalues of the smaller Gram matrix.
    gram = total @ total.T if total.shape[0] <= total.shape[1] else total.T @ total
    values = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
    return values.mean() * polar(total)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_makes_the_singular_values_of_the_sum_equal(shape, tasks):
    stack = random_stack(tasks, shape)
    result = merged_stack(stack, "iso_c")
    assert_near(result, loop_iso_c(as_floats(stack)))
    values = torch.linalg.svdvals(result)
    assert_near(values, torch.linalg.svdvals(stack.sum(0)).mean().expand_as(values))


@pytest.mark.parametrize(("shape", "rank"), [((6, 4), 1), ((5, 5), 2)])
def test_directions_that_no_task_has_stay_zero(shape, rank):
    stack = random_stack(1, shape, rank=rank).repeat(2, 1, 1)
    result = merged_stack(stack, "iso_c")
    assert_near(result, loop_iso_c(as_floats(stack)))
    assert int(torch.linalg.matrix_rank(result, rtol=1e-5)) == rank


def test_other_tensors_are_averaged():
    for shape in [(), (1,), (4,), (2, 3, 3), (2, 1, 3, 3)]:
        stack = random_stack(3, shape)
        torch.testing.assert_close(merged_stack(stack, "iso_c"), stack.mean(0))


def test_a_row_and_a_column_keep_the_sum():
    for shape in [(1, 5), (5, 1), (1, 1)]:
        stack = random_stack(3, shape)
        assert_near(merged_stack(stack, "iso_c"), stack.sum(0))


def test_refuses_a_single_text_for_globs():
    with pytest.raises(TypeError, match="exclude must be a sequence"):
        IsoC(exclude="text_projection")


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_each_task_has_what_the_spread_of_the_sum_makes_of_it(shape):
    stack = random_stack(3, shape)
    left, values, _ = np.linalg.svd(np.asarray(stack.sum(0), dtype=np.float64), full_matrices=False)
    expected = [(left * (values.mean() / values)) @ left.T @ np.asarray(tau, dtype=np.float64) for tau in stack]
    made = IsoC().parts(stack.clone(), MergeContext("w", ("a", "b", "c")))
    np.testing.assert_allclose(made.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_directions_that_the_sum_has_not_are_in_no_part():
    tau = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]]])
    made = IsoC().parts(tau, MergeContext("w", ("a", "b")))
    torch.testing.assert_close(made, torch.tensor([[[0.5, 0.0], [0.0, 0.0]]] * 2))
