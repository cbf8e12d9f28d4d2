import numpy as np
import pytest
import torch
from _helpers.golden import golden_output, golden_vectors, largest_error
from _helpers.small_matrices import SHAPES, as_floats, assert_near, merged_stack, polar, random_stack

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules import MergeContext
from lwptv_lightning.rules.tsv_m import TSVM


def test_equals_the_reference():
    result = merge(golden_vectors("main"), MergeRecipe(rule=TSVM(exclude=("text_projection",))))
    assert largest_error(result, golden_output("tsvm.official")) < 1e-5


def test_exclusion_concerns_the_excluded_tensors_alone():
    vectors = golden_vectors("main")
    excluded = merge(vectors, MergeRecipe(rule=TSVM(exclude=("*_projection",))))
    all_of_them = merge(vectors, MergeRecipe(rule="tsv_m"))
    assert [name for name in excluded if not torch.equal(excluded[name], all_of_them[name])] == ["text_projection"]


def loop_tsv_m(matrices):
    size, tasks = min(matrices[0].shape), len(matrices)
    columns, spectrum, rows = [], [], []
    for matrix in matrices:
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        for index in range(int(size / tasks)):
            columns.append(left[:, index])
            spectrum.append(values[index])
            rows.append(right[index])
    left, right = polar(np.stack(columns, axis=1)), polar(np.stack(rows))
    return sum(value * np.outer(left[:, index], right[index]) for index, value in enumerate(spectrum))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_makes_the_strongest_directions_of_the_tasks_orthogonal(shape, tasks):
    stack = random_stack(tasks, shape)
    assert_near(merged_stack(stack, "tsv_m"), loop_tsv_m(as_floats(stack)))


def test_one_task_is_kept():
    stack = random_stack(1, (6, 4))
    assert_near(merged_stack(stack, "tsv_m"), stack[0])


def test_tasks_in_orthogonal_subspaces_are_added_up_to_their_rank():
    stack = torch.zeros(2, 6, 6)
    stack[0, :3, :3] = random_stack(1, (3, 3))[0]
    stack[1, 3:, 3:] = random_stack(1, (3, 3), seed=1)[0]
    assert_near(merged_stack(stack, "tsv_m"), stack.sum(0))


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 3), (2, 7), (7, 2), (1, 1)])
def test_other_tensors_and_matrices_with_less_rows_than_tasks_are_averaged(shape):
    stack = random_stack(3, shape)
    torch.testing.assert_close(merged_stack(stack, "tsv_m"), stack.mean(0))


def test_a_pruned_task_disturbs_no_other():
    stack = random_stack(2, (6, 6))
    stack[1] = 0
    left, values, right = torch.linalg.svd(stack[0])
    assert_near(merged_stack(stack, "tsv_m"), left[:, :3] * values[:3] @ right[:3])


def test_equal_tasks_share_their_directions():
    stack = random_stack(1, (6, 6)).repeat(2, 1, 1)
    left, values, right = torch.linalg.svd(stack[0])
    assert_near(merged_stack(stack, "tsv_m"), left[:, :3] * values[:3] @ right[:3])


def test_parts_are_what_each_task_adds():
    stack = random_stack(3, (6, 9))
    parts = TSVM().parts(stack.clone(), MergeContext("w", ("a", "b", "c")))
    assert parts.shape == stack.shape
    assert_near(parts.sum(0), merged_stack(stack, "tsv_m"))
    for part, task in zip(parts, stack, strict=True):
        assert int(torch.linalg.matrix_rank(part, rtol=1e-5)) == 2
        assert torch.linalg.matrix_norm(part, 2) <= torch.linalg.matrix_norm(task, 2) + 1e-5
