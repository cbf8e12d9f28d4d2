import numpy as np
import pytest
import torch
from _helpers.golden import golden_error, golden_vectors
from _helpers.small_matrices import SHAPES, as_floats, assert_near, merged_stack, polar, random_stack

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules import MergeContext
from lwptv_lightning.rules.dc_merge import DCMerge

WITHOUT_PROJECTION = {"exclude": ("*text_projection*",)}
VARIANTS = [
    {},
    {"keep": 0.1},
    {"keep": 1.0},
    {"smoothing": "average", "keep": 0.3},
    {"smoothing": "linear", "keep": 0.3},
    {"smoothing": "linear", "rho": 1.5, "keep": 0.3},
    {"rank": 2, "keep": 0.25},
    {"rank": 4, "smoothing": "linear", "keep": 0.5},
    {"rank": 16, "smoothing": "average", "keep": 1.0},
]


@pytest.mark.parametrize(
    ("case", "settings", "tasks"),
    [
        ("dc_merge.official_fft_p.1", {"keep": 0.1}, None),
        ("dc_merge.official_lora_avg", {"smoothing": "average", "rank": 16}, [0, 1]),
    ],
)
def test_equals_the_reference(case, settings, tasks):
    vectors = golden_vectors("main", tasks)
    result = merge(vectors, MergeRecipe(rule=DCMerge(**settings, **WITHOUT_PROJECTION)))
    assert golden_error(result, case) < 1e-5


def smoothed(values, smoothing, rho):
    count = len(values)
    if smoothing == "average":
        return [sum(values) / count] * count
    if smoothing == "linear" and values[0] > 0:
        start = min(rho, values[0] / values[-1]) if values[-1] > 0 else rho
        steps = [start + (1 - start) * index / max(count - 1, 1) for index in range(count)]
        return [sum(values) * step / sum(steps) for step in steps]
    return list(values)


def shortened(matrix, count, smoothing, rho):
    """A matrix's strongest triplets, those without weight zero."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    real = values > 1e-6 * values[0]
    new = smoothed((values * real)[:count], smoothing, rho)
    return (left * real)[:, :count], np.array(new), (right * real[:, None])[:count]


def kept_entries(core, number):
    """A core's largest entries with whatever ties with the least, up to the rounding of float64."""
    ordered = sorted(np.abs(core).flatten(), reverse=True)
    least = max(ordered[min(number, len(ordered)) - 1] * (1 - 1e-9), ordered[0] * 1e-9)
    return np.array([[value if abs(value) >= least else 0.0 for value in row] for row in core])


def loop_parts(matrices, smoothing="none", rho=5.0, rank=None, keep=1e-3):
    tasks, smaller = len(matrices), min(matrices[0].shape)
    count = smaller // tasks if rank is None else min(rank, smaller)
    triplets = [shortened(matrix, count, smoothing, rho) for matrix in matrices]
    left = polar(np.concatenate([triplet[0] for triplet in triplets], axis=1))
    right = polar(np.concatenate([triplet[2] for triplet in triplets], axis=0))
    size = smaller if rank is None else tasks * count
    number = max(1, int(keep * size * size))
    cores = [kept_entries(left.T @ (u * s) @ v @ right.T, number) for u, s, v in triplets]
    merged = [np.zeros_like(core) for core in cores]
    for row in range(tasks * count):
        for column in range(tasks * count):
            entries = [core[row, column] for core in cores]
            total = sum(entries)
            if row // count != column // count or abs(total) <= 1e-9 * sum(map(abs, entries)):
                continue
            agreeing = [task for task, entry in enumerate(entries) if entry * total > 0]
            for task in agreeing:
                merged[task][row, column] = entries[task] / len(agreeing)
    return [left @ core @ right for core in merged]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_elects_signs_in_shared_directions(shape, tasks, variant):
    stack = random_stack(tasks, shape)
    assert_near(merged_stack(stack, DCMerge(**variant)), sum(loop_parts(as_floats(stack), **variant)))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize(("tasks", "shape"), [(8, (20, 33)), (8, (16, 16)), (20, (41, 21))])
def test_many_tasks(tasks, shape, variant):
    stack = random_stack(tasks, shape)
    assert_near(merged_stack(stack, DCMerge(**variant)), sum(loop_parts(as_floats(stack), **variant)))


def test_each_of_as_many_tasks_as_rows_has_a_direction():
    # 49 * (1 / 49) is below 1.
    stack = random_stack(49, (49, 50))
    assert_near(merged_stack(stack, "dc_merge"), sum(loop_parts(as_floats(stack))))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("inputs", ["main", "frozen", "pair", "edge"])
def test_other_settings_on_the_references_inputs(inputs, variant):
    vectors = golden_vectors(inputs)
    merged = merge(vectors, MergeRecipe(rule=DCMerge(**variant, **WITHOUT_PROJECTION)), dtype=torch.float64)
    for name in vectors.names:
        stack = vectors.stack(name).double()
        is_large = stack.dim() == 3 and ("rank" in variant or min(stack.shape[1:]) >= len(stack))
        is_matrix = is_large and name != "text_projection"
        expected = sum(loop_parts(as_floats(stack), **variant)) if is_matrix else stack.mean(0)
        assert_near(merged[name] - vectors.base(name), expected)


def test_one_task_is_kept_where_all_entries_are():
    stack = random_stack(1, (6, 4))
    assert_near(merged_stack(stack, DCMerge(keep=1.0)), stack[0])
    assert int(torch.linalg.matrix_rank(merged_stack(stack, "dc_merge"), rtol=1e-5)) == 1


def test_tasks_in_orthogonal_directions_are_added_up_to_their_rank():
    # Of another task's entries rounding alone is left, which has no vote.
    stack = torch.zeros(2, 6, 6)
    stack[0, :3, :3] = random_stack(1, (3, 3))[0]
    stack[1, 3:, 3:] = random_stack(1, (3, 3), seed=1)[0]
    turn = torch.linalg.qr(random_stack(1, (6, 6), seed=2)[0].double())[0]
    assert_near(merged_stack(turn @ stack.double(), DCMerge(keep=1.0)), turn @ stack.sum(0).double())


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 3), (2, 7), (7, 2), (1, 1), (0, 4)])
def test_other_tensors_and_matrices_with_less_rows_than_tasks_are_averaged(shape):
    stack = random_stack(3, shape)
    torch.testing.assert_close(merged_stack(stack, "dc_merge"), stack.mean(0))


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 3), (0, 4)])
def test_with_a_rank_other_tensors_are_averaged(shape):
    stack = random_stack(3, shape)
    torch.testing.assert_close(merged_stack(stack, DCMerge(rank=2)), stack.mean(0))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_pruned_task_has_no_directions(variant):
    stack = random_stack(3, (9, 7))
    stack[1] = 0
    parts = DCMerge(**variant).parts(stack.clone(), MergeContext("w", ("a", "b", "c")))
    assert not parts[1].any()
    assert_near(parts, np.stack(loop_parts(as_floats(stack), **variant)))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("rank", [1, 2])
def test_tasks_of_low_rank_have_fewer_directions(rank, variant):
    stack = random_stack(2, (9, 8), rank=rank)
    assert_near(merged_stack(stack, DCMerge(**variant)), sum(loop_parts(as_floats(stack), **variant)))


@pytest.mark.parametrize("keep", [1e-3, 1.0])
def test_equal_tasks_share_their_directions(keep):
    # Each value of a task stands in the core four times, twice of these in blocks that stay.
    stack = random_stack(1, (6, 6)).repeat(2, 1, 1)
    left, values, right = torch.linalg.svd(stack[0])
    count = 1 if keep < 1 else 3
    assert_near(merged_stack(stack, DCMerge(keep=keep)), (left[:, :count] * values[:count] @ right[:count]) / 2)


def test_opposite_tasks_elect_nothing():
    stack = random_stack(1, (6, 6)) * torch.tensor([1.0, -1.0])[:, None, None]
    assert not merged_stack(stack, DCMerge(keep=1.0)).any()


def test_parts_are_what_each_task_adds():
    stack = random_stack(3, (6, 9))
    parts = DCMerge(keep=0.5).parts(stack.clone(), MergeContext("w", ("a", "b", "c")))
    assert_near(parts, np.stack(loop_parts(as_floats(stack), keep=0.5)))
    assert_near(parts.sum(0), merged_stack(stack, DCMerge(keep=0.5)))
