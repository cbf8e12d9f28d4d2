import numpy as np
import pytest
import torch
from _helpers.golden import golden_error, golden_vectors
from _helpers.small_matrices import as_floats, assert_near, random_stack, vectors_of

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.functional import decompose
from lwptv_lightning.modifiers import SubspaceBoosting

NAME = "attn.in_proj_weight"
BLOCKS = ("*in_proj_weight", "*attn.out_proj.weight", "*mlp.c_fc.weight", "*mlp.c_proj.weight")
FUSED = ("*in_proj_weight",)


def loop_boost(merged, beta):
    """Raise singular values, one after the other."""
    left, values, right = np.linalg.svd(merged, full_matrices=False)
    total, reached = np.zeros_like(merged), 0.0
    for least in values:
        reached += least
        if reached >= beta * values.sum() - 1e-12 * values.sum():
            break
    for index, value in enumerate(values):
        if value > 1e-6 * values[0]:
            total += max(value, least) * np.outer(left[:, index], right[index])
    return total


def boosted(stack, beta, scale=1.0, dtype="float32", **given):
    calibrate = SubspaceBoosting(beta=beta, **given)
    recipe = MergeRecipe("task_arithmetic", scale, calibrate=calibrate, dtype=dtype)
    return merge(vectors_of({NAME: stack}), recipe)[NAME]


def test_equals_the_reference():
    calibrate = SubspaceBoosting(beta=0.1, include=BLOCKS, split=FUSED)
    recipe = MergeRecipe("task_arithmetic", scale=1.0, calibrate=calibrate)
    assert golden_error(merge(golden_vectors("main"), recipe), "subspace_boosting.fb_beta.1") < 1e-5


@pytest.mark.parametrize("split", [(), FUSED], ids=["whole", "apart"])
@pytest.mark.parametrize(("rule", "beta"), [("task_arithmetic", 0.01), ("task_arithmetic", 0.1), ("tsv_m", 0.5)])
def test_each_matrix_is_that_of_a_loop(rule, beta, split):
    vectors = golden_vectors("main")
    calibrate = SubspaceBoosting(beta=beta, include=BLOCKS, split=split)
    plain, found = (merge(vectors, MergeRecipe(rule, 1.0, calibrate=each)) for each in (None, calibrate))
    treated = [name for name in plain if not torch.equal(plain[name], found[name])]
    assert len(treated) == 4
    for name in treated:
        merged = (plain[name].double() - vectors.base(name)).numpy()
        blocks = np.split(merged, 3) if split and "in_proj" in name else [merged]
        expected = np.concatenate([loop_boost(block, beta) for block in blocks])
        assert_near(found[name].double() - vectors.base(name), expected, 1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (4, 9), (5, 5), (1, 7), (7, 1)])
@pytest.mark.parametrize("tasks", [1, 2, 8, 20])
def test_any_shape_and_number_of_tasks(shape, tasks):
    stack = random_stack(tasks, shape)
    expected = loop_boost(sum(as_floats(stack)), 0.4)
    assert_near(boosted(stack, 0.4), expected, 1e-4)
    assert_near(boosted(stack.double(), 0.4, dtype="float64"), expected, 1e-10)


def test_usual_beta_is_iso_c_with_another_scale():
    stack = random_stack(3, (6, 4))
    values = torch.linalg.svdvals(stack.sum(0))
    iso = merge(vectors_of({NAME: stack}), MergeRecipe("iso_c"))[NAME]
    assert_near(boosted(stack, 0.01), iso * values[0] / values.mean())


def test_the_ends_of_the_range():
    stack = random_stack(3, (6, 4))
    assert_near(boosted(stack, 1.0), stack.sum(0))
    left, values, right = torch.linalg.svd(stack.sum(0), full_matrices=False)
    assert_near(boosted(stack, 0.0), values[0] * left @ right)
    for beta in (-0.1, 1.1):
        with pytest.raises(ValueError, match="beta"):
            SubspaceBoosting(beta=beta)


def test_it_commutes_with_the_scale():
    stack = random_stack(3, (6, 4))
    once = boosted(stack, 0.4)
    assert_near(boosted(stack, 0.4, scale=-0.3), -0.3 * once)
    assert_near(boosted(stack, 0.4, scale=1.0) * 0.5, boosted(stack, 0.4, **{"scale": 0.5}))
    vectors = vectors_of({NAME: stack})
    after = MergeRecipe("task_arithmetic", 1.0, calibrate=SubspaceBoosting(beta=0.4, scale=0.5))
    assert_near(merge(vectors, after)[NAME], 0.5 * once)


@pytest.mark.parametrize("shape", [(6, 4), (4, 9), (5, 5)])
@pytest.mark.parametrize("beta", [0.0, 0.01, 1.0])
def test_directions_without_weight_are_not_raised(shape, beta):
    stack = random_stack(3, shape, rank=1)
    stack[1:] = stack[0] * torch.tensor([2.0, -0.5])[:, None, None]
    assert_near(boosted(stack, beta), stack.sum(0), 1e-4)
    assert not boosted(torch.zeros(2, *shape), beta).any()


def test_scale_zero_is_the_base():
    assert not boosted(random_stack(2, (4, 3)), 0.01, scale=0.0).any()


def test_queries_keys_and_values_of_unequal_rows_are_refused_before_a_weight_is_read():
    vectors = vectors_of({NAME: random_stack(2, (8, 4))})
    recipe = MergeRecipe(calibrate=SubspaceBoosting(split=FUSED))
    with pytest.raises(ValueError, match=r"split: 'attn.in_proj_weight' has 8 rows"):
        merge(vectors, recipe)


def test_matrices_without_elements_have_no_gains():
    for shape in ((0, 3), (3, 0)):
        assert SubspaceBoosting().gains(decompose(torch.zeros(shape)), torch.zeros(2, *shape)).numel() == 0


def test_globs_say_what_is_treated():
    some = SubspaceBoosting(include=("*.fc?.weight",), exclude=("head*",), split=("*fc2*",))
    assert some.treats("mlp.fc1.weight", (3, 2))
    assert not some.treats("mlp.fc1.weight", (3,))
    assert not some.treats("head.fc1.weight", (3, 2))
    assert [some.row_blocks(name, (6, 2)) for name in ("mlp.fc1.weight", "mlp.fc2.weight")] == [1, 3]
