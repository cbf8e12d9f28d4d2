import warnings

import numpy as np
import pytest
import torch
from _helpers.golden import golden_error, golden_vectors
from _helpers.small_matrices import as_floats, assert_near, merged_stack, random_stack, vectors_of

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules.actmat import ACTMat

SINGLE = np.finfo(np.float32).eps
IN_PROJ = ("*in_proj_weight",)


def merged_matrix(stack, rtol=None, weights="equal", trim=None):
    """The formula with explicit Gram matrices and numpy's pseudo-inverse."""
    matrices = [matrix for matrix in as_floats(stack) if matrix.any()]
    if not matrices or (len(matrices) == 1 and trim in (None, 1)):
        return sum(matrices, np.zeros(stack.shape[1:]))
    grams = []
    for matrix in matrices:
        count = matrix.size if trim is None else max(round(trim * matrix.size), 1)
        rows = np.where(abs(matrix) >= np.sort(abs(matrix), axis=None)[-count], matrix, 0)
        grams.append(rows.T @ rows / (np.linalg.norm(matrix) ** 2 if weights == "norm" else 1))
    cut = stack.shape[-1] * SINGLE if rtol is None else rtol
    inverse = np.linalg.pinv(sum(grams), rcond=cut, hermitian=True)
    return sum(matrix @ gram for matrix, gram in zip(matrices, grams, strict=True)) @ inverse


def merged_tensor(name, stack, split=(), exclude=(), **settings):
    """What becomes of one tensor of a model."""
    if stack.dim() != 3 or any(part in name for part in exclude):
        return stack.double().mean(0).numpy()
    blocks = stack.chunk(3, dim=1) if any(part in name for part in split) else [stack]
    return np.concatenate([merged_matrix(block, **settings) for block in blocks])


def test_equals_the_reference():
    recipe = MergeRecipe(rule=ACTMat(exclude=("*text_projection*",)))
    assert golden_error(merge(golden_vectors("main"), recipe), "actmat.official") < 1e-5
    assert golden_error(merge(golden_vectors("main"), recipe.replace(prune_on="parts")), "actmat.official") < 1e-5


@pytest.mark.parametrize(
    "settings",
    [{}, {"split": ["in_proj_weight"]}, {"trim": 0.5}, {"weights": "norm"}, {"weights": "norm", "trim": 0.3}],
)
@pytest.mark.parametrize("inputs", ["main", "edge", "frozen", "pair"])
def test_equals_the_formula_on_the_reference_inputs(inputs, settings):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="task .* equals the base|rule 'actmat' treated 0")
        vectors = golden_vectors(inputs)
        given = {**settings, "split": IN_PROJ if "split" in settings else (), "exclude": ("*text_projection*",)}
        merged = merge(vectors, MergeRecipe({"name": "actmat", **given}))
    for name in vectors.names:
        expected = vectors.base(name).double().numpy() + merged_tensor(
            name, vectors.stack(name), exclude=["text_projection"], **settings
        )
        assert_near(merged[name], expected, 1e-5)


@pytest.mark.parametrize("settings", [{}, {"rtol": 0.01}, {"weights": "norm"}, {"trim": 0.5}], ids=str)
@pytest.mark.parametrize("shape", [(3, 3), (2, 24), (24, 2), (1, 7), (7, 1)])
@pytest.mark.parametrize("tasks", [2, 8, 20])
def test_equals_the_formula(tasks, shape, settings):
    sizes = torch.linspace(0.5, 2, tasks)[:, None, None]
    stack = sizes * random_stack(tasks, shape)
    expected = merged_matrix(stack, **settings)
    assert_near(merged_stack(stack, ACTMat(**settings)) / abs(expected).max(), expected / abs(expected).max(), 1e-5)


@pytest.mark.parametrize("trim", [None, 1])
@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("weights", ["equal", "norm"])
def test_a_task_that_is_alone_is_kept(rank, weights, trim):
    stack = random_stack(1, (5, 40), rank=rank)
    stack[0, 0] *= 1e-5  # which a cut-off would take for nothing
    rule = ACTMat(weights=weights, trim=trim)
    assert torch.equal(merged_stack(stack, rule), stack[0])
    among = torch.cat([torch.zeros(1, 5, 40), stack, torch.zeros(1, 5, 40)])
    assert torch.equal(merged_stack(among, rule), stack[0])


@pytest.mark.parametrize("shape", [(3, 3), (2, 24), (24, 2), (1, 7)])
@pytest.mark.parametrize("weights", ["equal", "norm"])
def test_a_trimmed_task_that_is_alone_is_seen_by_what_is_left_of_its_rows(weights, shape):
    stack = random_stack(1, shape)
    expected = merged_matrix(stack, weights=weights, trim=0.5)
    rule = ACTMat(weights=weights, trim=0.5)
    assert_near(merged_stack(stack, rule), expected, 1e-6)
    assert_near(merged_stack(torch.cat([torch.zeros_like(stack), stack]), rule), expected, 1e-6)


@pytest.mark.parametrize("settings", [{}, {"weights": "norm"}, {"trim": 0.5}], ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (3, 20)])
def test_a_zero_task_takes_no_part(shape, settings):
    stack = random_stack(3, shape)
    stack[1] = 0
    rule = ACTMat(**settings)
    assert_near(merged_stack(stack, rule), merged_stack(stack[[0, 2]], rule), 1e-6)


def test_equal_tasks_give_what_each_has():
    stack = random_stack(1, (4, 6)).repeat(3, 1, 1)
    assert_near(merged_stack(stack, ACTMat()), stack[0], 1e-6)


def test_it_is_long_at_the_interpolation_threshold_and_the_cut_off_shortens_it():
    def length(shape, rtol):
        stack = random_stack(4, shape)
        return float(merged_stack(stack, ACTMat(rtol=rtol)).norm() / stack.mean(0).norm())

    assert length((16, 64), 0) > 50
    assert 5 < length((16, 64), 1e-3) < 15
    assert length((16, 64), 0.1) < 5
    assert length((16, 256), 0) < 5
    assert length((16, 16), 0) < 5


def test_queries_keys_and_values_are_merged_apart():
    stack = random_stack(3, (12, 6))
    rule, whole = ACTMat(split=("*qkv.weight",)), ACTMat()
    expected = torch.cat([merged_stack(rows, whole) for rows in stack.chunk(3, dim=1)])
    assert_near(merged_stack(stack, rule, "attn.qkv.weight"), expected, 1e-6)
    assert not torch.allclose(merged_stack(stack, whole, "attn.qkv.weight"), expected, atol=0.1)
    assert torch.equal(merged_stack(stack, rule, "mlp.fc1.weight"), merged_stack(stack, whole, "mlp.fc1.weight"))
    vector = random_stack(2, (9, 1))[..., 0]
    assert_near(merged_stack(vector, ACTMat(split=("*",)), "attn.qkv.bias"), vector.mean(0))


def test_what_cannot_be_divided_into_three_is_refused_before_anything_is_read(monkeypatch):
    vectors = vectors_of({"attn.qkv.weight": random_stack(2, (9, 4)), "head.weight": random_stack(2, (10, 4))})
    monkeypatch.setattr(ACTMat, "combine", None)
    with pytest.raises(ValueError, match=r"'head.weight' for queries, keys and values .* its 10 rows"):
        merge(vectors, MergeRecipe(rule=ACTMat(split=("*",))))


def test_the_weight_of_a_1x1_convolution_is_a_matrix():
    stack = random_stack(3, (4, 6))
    result = merged_stack(stack[..., None, None], ACTMat(), "conv.weight")
    assert torch.equal(result[..., 0, 0], merged_stack(stack, ACTMat()))
    kernel = random_stack(3, (4, 9)).reshape(3, 4, 1, 3, 3)
    assert_near(merged_stack(kernel, ACTMat(), "conv.weight"), kernel.mean(0))


def test_excluded_matrices_are_averaged():
    stack = random_stack(3, (4, 6))
    assert_near(merged_stack(stack, ACTMat(exclude=("head*",)), "head.weight"), stack.mean(0))


def test_pruned_parts_are_left_out_of_the_sum():
    stack = random_stack(3, (4, 6))
    recipe = MergeRecipe(
        "actmat", prune_on="parts", coefficients={"task0": {"*": 1.0}, "task1": {"*": 0.0}, "task2": {"*": 0.5}}
    )
    grams = [matrix.T @ matrix for matrix in as_floats(stack)]
    inverse = np.linalg.pinv(sum(grams))
    parts = [matrix @ gram @ inverse for matrix, gram in zip(as_floats(stack), grams, strict=True)]
    assert_near(merge(vectors_of({"mlp.fc1.weight": stack}), recipe)["mlp.fc1.weight"], parts[0] + parts[2] / 2)


@pytest.mark.parametrize("arguments", [{"rtol": 1.0}, {"rtol": -1e-3}, {"trim": 0}, {"trim": 1.5}, {"weights": "none"}])
def test_refuses_settings_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ACTMat(**arguments)
