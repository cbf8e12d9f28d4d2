import numpy as np
import pytest
import torch
from _helpers.golden import golden_error, golden_vectors
from _helpers.small_matrices import SHAPES, as_floats, assert_near, merged_stack, polar, random_stack

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.functional import decompose
from lwptv_lightning.rules import MergeContext
from lwptv_lightning.rules.score import SCORE

WITHOUT_PROJECTION = {"exclude": ("*text_projection*",)}
VARIANTS = [{}, {"off_diagonal": False}, {"divide_by_tasks": False}]


def test_equals_the_reference():
    result = merge(golden_vectors("main"), MergeRecipe(rule=SCORE(**WITHOUT_PROJECTION)))
    assert golden_error(result, "score.official") < 1e-5


def shared_directions(matrices):
    """Each task's strongest vectors side by side, those without weight zero, one at a time."""
    size = min(matrices[0].shape) // len(matrices)
    columns, rows = [], []
    for matrix in matrices:
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        for index in range(size):
            column, row = left[:, index], right[index]
            if column[np.argmax(np.abs(column))] < 0:
                column, row = -column, -row
            is_real = values[index] > 1e-6 * values[0]
            columns.append(column * is_real)
            rows.append(row * is_real)
    return polar(np.stack(columns, axis=1)), polar(np.stack(rows))


def loop_parts(matrices, off_diagonal=True, divide_by_tasks=True):
    left, right = shared_directions(matrices)
    tasks, parts = len(matrices), []
    for matrix in matrices:
        core = left.T @ matrix @ right.T
        places = [(row, column) for row in range(len(core)) for column in range(len(core))]
        others = {place: 0.0 if place[0] == place[1] else core[place] for place in places}
        mean = sum(others.values()) / len(places)
        deviation = (sum((value - mean) ** 2 for value in others.values()) / max(len(places) - 1, 1)) ** 0.5
        width = 1.96 * deviation / tasks if divide_by_tasks else 1.96 * deviation
        kept = np.zeros_like(core)
        for row, column in places:
            is_small = off_diagonal and abs(others[row, column] - mean) <= width
            if row == column or is_small:
                kept[row, column] = core[row, column]
        parts.append(left @ kept @ right)
    return parts


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_cuts_the_strong_interactions_between_shared_directions(shape, tasks, variant):
    stack = random_stack(tasks, shape)
    assert_near(merged_stack(stack, SCORE(**variant)), sum(loop_parts(as_floats(stack), **variant)))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize(("tasks", "shape"), [(8, (20, 33)), (8, (16, 16)), (20, (47, 24))])
def test_many_tasks(tasks, shape, variant):
    stack = random_stack(tasks, shape)
    assert_near(merged_stack(stack, SCORE(**variant)), sum(loop_parts(as_floats(stack), **variant)))


def test_each_of_as_many_tasks_as_rows_has_a_direction():
    # 49 * (1 / 49) is below 1.
    stack = random_stack(49, (49, 50))
    assert_near(merged_stack(stack, "score"), sum(loop_parts(as_floats(stack))))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("inputs", ["main", "frozen", "pair", "edge"])
def test_other_variants_on_the_references_inputs(inputs, variant):
    vectors = golden_vectors(inputs)
    merged = merge(vectors, MergeRecipe(rule=SCORE(**variant, **WITHOUT_PROJECTION)), dtype=torch.float64)
    for name in vectors.names:
        stack = vectors.stack(name).double()
        is_matrix = stack.dim() == 3 and min(stack.shape[1:]) >= len(stack) and name != "text_projection"
        expected = sum(loop_parts(as_floats(stack), **variant)) if is_matrix else stack.mean(0)
        assert_near(merged[name] - vectors.base(name), expected)


@pytest.mark.parametrize("tasks", [1, 2])
def test_one_task_is_kept_and_so_are_tasks_in_orthogonal_directions(tasks):
    stack = torch.zeros(tasks, 6, 6)
    for index in range(tasks):
        rows = slice(6 // tasks * index, 6 // tasks * (index + 1))
        stack[index, rows, rows] = random_stack(1, (6 // tasks, 6 // tasks), seed=index)[0]
    assert_near(merged_stack(stack, "score"), stack.sum(0))


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 3), (2, 7), (7, 2), (1, 1), (0, 4)])
def test_other_tensors_and_matrices_with_less_rows_than_tasks_are_averaged(shape):
    stack = random_stack(3, shape)
    torch.testing.assert_close(merged_stack(stack, "score"), stack.mean(0))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_pruned_task_has_no_directions(variant):
    stack = random_stack(3, (9, 7))
    stack[1] = 0
    parts = SCORE(**variant).parts(stack.clone(), MergeContext("w", ("a", "b", "c")))
    assert not parts[1].any()
    assert_near(parts, np.stack(loop_parts(as_floats(stack), **variant)))
    # Tasks, and directions of each, are as many as before.
    assert int(torch.linalg.matrix_rank(parts[0], rtol=1e-5)) <= 4


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("rank", [1, 2])
def test_tasks_of_low_rank_have_fewer_directions(rank, variant):
    stack = random_stack(2, (9, 8), rank=rank)
    assert_near(merged_stack(stack, SCORE(**variant)), sum(loop_parts(as_floats(stack), **variant)))


def test_equal_tasks_share_their_directions():
    stack = random_stack(1, (6, 6)).repeat(2, 1, 1)
    assert_near(merged_stack(stack, "score"), sum(loop_parts(as_floats(stack))))
    # In each core a half of every singular value stands on the diagonal, for either task.
    left, values, right = torch.linalg.svd(stack[0])
    assert_near(merged_stack(stack, SCORE(off_diagonal=False)), left[:, :3] * values[:3] @ right[:3])


def test_the_signs_that_a_library_chooses_do_not_matter():
    def turned(function, tensor):
        assert function is decompose
        left, values, right = function(tensor)
        signs = torch.randint(0, 2, values.shape, generator=torch.Generator().manual_seed(3)) * 2 - 1
        return left * signs, values, right * signs[:, None]

    stack = random_stack(3, (9, 12))
    expected = SCORE().combine(stack, MergeContext("w", ("a", "b", "c")))
    assert torch.equal(SCORE().combine(stack, MergeContext("w", ("a", "b", "c"), once=turned)), expected)


def test_a_dtype_changes_nothing_but_rounding():
    stack = random_stack(4, (32, 24))
    assert_near(merged_stack(stack, "score"), merged_stack(stack, "score", dtype=torch.float64))


def test_parts_are_what_each_task_adds():
    stack = random_stack(3, (6, 9))
    parts = SCORE().parts(stack.clone(), MergeContext("w", ("a", "b", "c")))
    assert_near(parts, np.stack(loop_parts(as_floats(stack))))
    assert_near(parts.sum(0), merged_stack(stack, "score"))
