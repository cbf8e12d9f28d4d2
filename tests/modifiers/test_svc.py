import math

import numpy as np
import pytest
import torch
from _helpers.golden import golden_error, golden_vectors
from _helpers.small_matrices import as_floats, assert_near, random_stack, vectors_of

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.functional import decompose
from lwptv_lightning.modifiers import SVC

SHAPES = [(6, 4), (4, 9), (5, 5), (1, 7), (7, 1)]
NAME = "mlp.fc1.weight"


def loop_svc(merged, tasks, alpha):
    """Calibrate a merged matrix by the matrices of tasks, one direction and one task after the other."""
    left, values, right = np.linalg.svd(merged, full_matrices=False)
    total, real = np.zeros_like(merged), [task for task in tasks if task.any()]
    for index, value in enumerate(values):
        if value <= 1e-6 * values[0]:
            continue
        own, held = left[:, index] @ merged, []
        for task in real:
            there = left[:, index] @ task
            square = there @ there
            held.append(max(own @ there / square if square > 1e-12 else 0.0, alpha))
        total += value / np.mean(held) * np.outer(left[:, index], right[index])
    return total


def calibrated(stack, rule="task_arithmetic", scale=0.3, name=NAME, dtype="float32", **given):
    recipe = MergeRecipe(rule, scale, calibrate=SVC(**given), dtype=dtype)
    return merge(vectors_of({name: stack}), recipe)[name]


def test_equals_the_reference():
    recipe = MergeRecipe("task_arithmetic", scale=0.3, calibrate=SVC(alpha=0.25))
    assert golden_error(merge(golden_vectors("main"), recipe), "svc.ta_alpha.25") < 1e-5


@pytest.mark.parametrize("inputs", ["main", "frozen", "pair", "edge"])
@pytest.mark.parametrize(
    ("rule", "scale", "alpha"),
    [("task_arithmetic", 0.3, 0.1), ("task_arithmetic", 1.0, 1.0), ("tsv_m", 1.0, 0.1), ("tsv_m", 1.0, None)],
)
def test_each_matrix_is_that_of_a_loop(inputs, rule, scale, alpha):
    vectors = golden_vectors(inputs)
    plain = merge(vectors, MergeRecipe(rule, scale))
    found = merge(vectors, MergeRecipe(rule, scale, calibrate=SVC(alpha=alpha)))
    matrices = [name for name in vectors.names if plain[name].dim() == 2 and "text_proj" not in name]
    matrices = [name for name in matrices if "embedding" not in name]
    assert matrices
    for name, tensor in found.items():
        if name not in matrices:
            assert torch.equal(tensor, plain[name]), name
            continue
        base = vectors.base(name).double()
        tasks = [(vectors.expert(task, name).double() - base).numpy() for task in vectors.tasks]
        merged = scale * np.sum(tasks, axis=0) if rule == "task_arithmetic" else (plain[name].double() - base).numpy()
        expected = loop_svc(merged, tasks, alpha or 1 / len(tasks))
        assert_near(tensor.double() - base, expected, 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tasks", [1, 2, 8, 20])
def test_any_shape_and_number_of_tasks(shape, tasks):
    stack = random_stack(tasks, shape)
    expected = loop_svc(0.3 * sum(as_floats(stack)), as_floats(stack), 1 / tasks)
    assert_near(calibrated(stack), expected)
    exact = calibrated(stack.double(), dtype="float64")
    assert exact.dtype == torch.float64
    assert_near(exact, expected, 1e-10)


def test_one_task_is_itself_unless_it_shrank_below_alpha():
    stack = random_stack(1, (5, 4))
    assert_near(calibrated(stack, scale=0.3, alpha=0.2), stack[0])
    assert_near(calibrated(stack, scale=3.0, alpha=0.2), stack[0])
    assert_near(calibrated(stack, scale=0.1, alpha=0.2), stack[0] / 2)


@pytest.mark.parametrize("scale", [-0.4, 0.0])
def test_scales_that_are_not_above_zero(scale):
    stack = random_stack(3, (5, 4))
    found = calibrated(stack, scale=scale)
    assert_near(found, loop_svc(scale * sum(as_floats(stack)), as_floats(stack), 1 / 3))
    # Against the sum of the tasks, no direction holds anything of them on the whole.
    assert not found.any() or float((found * stack.sum(0)).sum()) < 0


def test_the_scale_afterwards_multiplies_what_is_calibrated_alone():
    stack = random_stack(3, (5, 4))
    vectors = vectors_of({NAME: stack, "bias": stack[:, :, 0]})
    once, half = (
        merge(vectors, MergeRecipe("task_arithmetic", 0.3, calibrate=SVC(scale=scale))) for scale in (1.0, 0.5)
    )
    assert_near(half[NAME], 0.5 * once[NAME])
    assert torch.equal(half["bias"], once["bias"])


def test_the_scale_before_counts_the_less_the_smaller_alpha():
    stack = random_stack(3, (5, 4))

    def difference(alpha):
        sums = [calibrated(stack, scale=scale, alpha=alpha) for scale in (0.3, 1.0)]
        return float((sums[0] - sums[1]).norm() / sums[0].norm())

    assert difference(1e-9) < difference(0.1) < difference(1.0)


def test_it_follows_a_scale_of_all_task_vectors():
    stack = random_stack(3, (5, 4))
    once = calibrated(stack)
    for factor in (1e-30, 1e-9, 1e9, 1e30):
        assert_near(calibrated(stack * factor) / factor, once, 1e-4)


def test_tasks_that_are_zero_do_not_inflate_the_rest():
    stack = random_stack(2, (5, 4))
    silent = torch.cat([stack, torch.zeros(1, 5, 4)])
    assert_near(calibrated(silent, alpha=0.25), calibrated(stack, alpha=0.25), 1e-6)
    counted = loop_svc(0.3 * sum(as_floats(stack)), as_floats(stack), 0.25)
    assert_near(calibrated(silent, alpha=0.25), counted)


def test_rounding_of_a_frozen_matrix_is_no_task():
    stack = random_stack(3, (5, 4))
    stack[2] *= 1e-8
    assert_near(calibrated(stack, alpha=0.25), calibrated(stack[:2], alpha=0.25))


def test_what_is_zero_stays_zero():
    assert not calibrated(torch.zeros(3, 5, 4)).any()
    one = random_stack(1, (5, 4))[0]
    assert not calibrated(torch.stack([one, -one])).any()


@pytest.mark.parametrize("shape", [(6, 4), (4, 9), (5, 5)])
@pytest.mark.parametrize("rank", [1, 2])
def test_directions_without_weight_take_no_part(shape, rank):
    stack = torch.cat([random_stack(1, shape, seed, rank) for seed in (0, 1)])
    found = calibrated(stack, alpha=1e-3)
    assert found.isfinite().all()
    assert_near(found, loop_svc(0.3 * sum(as_floats(stack)), as_floats(stack), 1e-3), 1e-4)
    assert int(torch.linalg.matrix_rank(found.double(), rtol=1e-5)) <= 2 * rank


def test_rounding_of_a_task_that_lacks_a_direction_is_no_share_of_it():
    """Such a share, divided by its own square, would count more than all that is real."""
    wide = torch.diag(torch.tensor([2.0, 1.0, 0.5]))
    lacks = torch.diag(torch.tensor([2.0, 1.0, 0.0]))
    noisy = torch.diag(torch.tensor([2.0, 1.0, 1e-7]))
    exact, rounded = (calibrated(torch.stack([wide, each])) for each in (lacks, noisy))
    assert_near(exact, rounded)
    assert float(exact[2, 2]) > 0.1


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1e-30, 1e30, 1e300])
def test_gains_are_finite(size):
    tau = torch.stack([random_stack(1, (4, 3))[0].double(), torch.full((4, 3), size, dtype=torch.float64)])
    for merged in (tau.sum(0), tau[0], tau[1], torch.zeros(4, 3)):
        assert SVC().gains(decompose(merged), tau).isfinite().all()


def test_only_matrices_that_are_not_excluded_are_treated():
    shapes = {"a.weight": (4, 3), "conv.weight": (4, 3, 1, 1), "k.weight": (4, 3, 3, 3), "b": (4,), "s": ()}
    assert [name for name in shapes if SVC().treats(name, shapes[name])] == ["a.weight", "conv.weight"]
    assert not SVC().treats("text_projection", (4, 3))
    assert not SVC().treats("visual.positional_embedding", (4, 3))
    assert SVC(exclude=()).treats("text_projection", (4, 3))


def test_a_pointwise_convolution_is_the_matrix_that_it_is():
    stack = random_stack(3, (6, 4))
    found = calibrated(stack[..., None, None], name="conv.weight")
    assert_near(found[..., 0, 0], calibrated(stack))


@pytest.mark.parametrize("alpha", [0, -1, math.inf, math.nan, "a"])
def test_alpha_is_above_zero(alpha):
    with pytest.raises((ValueError, TypeError), match="alpha"):
        SVC(alpha=alpha)
