"""Rules in the space that tasks share, against numpy in float64 and against the rules on what is in that space."""

import numpy as np
import pytest
import torch
from _helpers.every_rule import TWO_TASKS
from _helpers.small_matrices import as_floats, assert_near, random_stack, vectors_of
from _helpers.states import assert_same_bits

from lwptv_lightning import LayerMask, LiNeS, MergeRecipe, merge
from lwptv_lightning.engine import Execution
from lwptv_lightning.functional import random_keep
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.merging import Merge
from lwptv_lightning.modifiers import KnOTS
from lwptv_lightning.rules import RULES, InSubspace

SHAPES = {
    "square.weight": (6, 6),
    "wide.weight": (4, 9),
    "tall.weight": (40, 5),
    "conv1.weight": (5, 4, 1, 1),
    "conv3.weight": (3, 2, 3, 3),
    "wide.bias": (4,),
    "table": (4, 4),
    "empty.weight": (0, 3),
}
MATRICES = ("square.weight", "wide.weight", "tall.weight", "conv1.weight")
WITHIN = sorted(name for name, rule in RULES.items() if not rule.why_no_subspace())
OUTSIDE = sorted(RULES.keys() - set(WITHIN))


def model(tasks, rank=None, seed=0):
    stacks = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        flat = (shape[0], int(np.prod(shape[1:]))) if len(shape) > 1 else (shape[0], 1)
        low = rank if name in MATRICES else None
        stacks[name] = random_stack(tasks, flat, seed + number, low).reshape(tasks, *shape)
    return stacks


def basis_of(matrices):
    """Left singular vectors above the cut-off, each with a positive largest entry, and their number."""
    left, values, _ = np.linalg.svd(np.concatenate(matrices, axis=1), full_matrices=False)
    left = left[:, values > 1e-5]
    largest = left[np.abs(left).argmax(0), np.arange(left.shape[1])] if left.shape[1] else np.ones(0)
    return left * np.sign(largest)


def in_space(stacks):
    """The bases of all matrices, and their coordinates ``(T, r, n)``."""
    bases, inside = {}, {}
    for name in MATRICES:
        matrices = as_floats(stacks[name].flatten(2))
        bases[name] = basis_of(matrices)
        inside[name] = np.stack([bases[name].T @ matrix for matrix in matrices])
    return bases, inside


def merged(stacks, rule, **options):
    recipe = {key: options.pop(key) for key in list(options) if key not in ("statistics", "execution", "mask")}
    recipe = {"scale": 1.0, "subspace": "knots", **recipe}
    return merge(vectors_of(stacks), MergeRecipe(rule, **recipe), **options)


def assert_is(result, bases, expected, tolerance=1e-5):
    for name, tensor in result.items():
        if name in bases:
            assert_near(tensor.flatten(1), bases[name] @ expected[name], tolerance)
        else:
            assert not tensor.any(), name


def experts(kind, rule):
    tasks = 2 if rule in TWO_TASKS else {"alone": 1, "many": 20}.get(kind, 3)
    stacks = model(tasks, rank=1 if kind == "rank 1" else None)
    if kind == "equal":
        return {name: stack[:1].expand_as(stack).clone() for name, stack in stacks.items()}
    if kind == "some zero":
        return {name: torch.cat([stack[:-1], 0 * stack[-1:]]) for name, stack in stacks.items()}
    return stacks


@pytest.mark.parametrize("rule", WITHIN)
@pytest.mark.parametrize("kind", ["plain", "rank 1", "equal", "some zero", "alone", "many"])
def test_a_rule_does_there_what_it_does_with_such_task_vectors(rule, kind):
    stacks = experts(kind, rule)
    bases, inside = in_space(stacks)
    plain = merge(vectors_of({name: torch.tensor(each) for name, each in inside.items()}), MergeRecipe(rule, 1.0))
    expected = {name: tensor.numpy() for name, tensor in plain.items()}
    # In float64, where no rounding decides between elements of nearly one size.
    assert_is(merged(stacks, rule, dtype="float64"), bases, expected)


@pytest.mark.parametrize("rule", WITHIN)
def test_nothing_stays_nothing(rule):
    stacks = {name: torch.zeros_like(stack) for name, stack in experts("plain", rule).items()}
    assert not any(tensor.any() for tensor in merged(stacks, rule).values())


@pytest.mark.parametrize("tasks", [1, 2, 8, 20])
@pytest.mark.parametrize("rank", [None, 1])
def test_a_sum_there_is_the_sum(tasks, rank):
    stacks = model(tasks, rank)
    result = merged(stacks, "task_arithmetic")
    for name in MATRICES:
        assert_near(result[name], stacks[name].double().sum(0), 1e-4)
    assert not result["wide.bias"].any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_magmax_takes_the_largest_coordinate(dtype):
    stacks = model(4)
    bases, inside = in_space(stacks)
    expected = {name: np.take_along_axis(x, np.abs(x).argmax(0)[None], 0)[0] for name, x in inside.items()}
    assert_is(merged(stacks, "magmax", dtype=dtype), bases, expected)


def test_dare_draws_for_coordinates_by_their_place_and_the_names_of_tensor_and_task():
    stacks = model(3)
    bases, inside = in_space(stacks)
    expected = {}
    for name, each in inside.items():
        kept = random_keep(each[0].size, 0.5, 7, ["task0", "task1", "task2"], name).reshape(each.shape).numpy()
        expected[name] = (each * kept / 0.5).sum(0)
    assert_is(merged(stacks, {"name": "dare", "density": 0.5, "seed": 7}), bases, expected)


def test_pcb_ranks_the_coordinates_of_all_matrices_together():
    stacks = model(3)
    bases, inside = in_space(stacks)
    rows = np.concatenate([each.reshape(3, -1) for each in inside.values()], axis=1)
    count = rows.shape[1]
    weights, clamped = [], []
    for row in rows:
        ordered = np.sort(np.abs(row))
        magnitudes = np.clip(np.abs(row), ordered[int(count * 0.01)], ordered[int(count * 0.99 - 1)])
        spread = (magnitudes - magnitudes.min()) / (magnitudes.max() - magnitudes.min())
        scores = np.exp(3 * spread**2) * np.tanh(row * rows.sum(0))
        scores = np.maximum(scores, np.sort(scores)[int(count * 0.7)])
        weights.append((scores - scores.min()) / (scores.max() - scores.min()))
        clamped.append(np.sign(row) * magnitudes)
    flat = sum(w * v for w, v in zip(weights, clamped, strict=True)) / np.maximum(sum(weights), 1e-12)
    ends = np.cumsum([each[0].size for each in inside.values()])[:-1]
    pieces = zip(inside.items(), np.split(flat, ends), strict=True)
    expected = {name: piece.reshape(each.shape[1:]) for (name, each), piece in pieces}
    assert_is(merged(stacks, {"name": "pcb", "density": 0.3, "clip": 0.01}), bases, expected, 1e-4)


@pytest.mark.parametrize("rule", OUTSIDE)
def test_other_rules_are_refused_with_the_reason(rule):
    reason = RULES[rule].why_no_subspace()
    assert reason
    with pytest.raises(ValueError, match=f"subspace='knots' is of no use to rule '{rule}': {reason}"):
        MergeRecipe(rule, subspace="knots")


def test_which_rules_work_there():
    assert {"ties", "task_arithmetic", "dare", "della", "magmax", "pcb", "sce", "model_stock"} <= set(WITHIN)
    assert {"tsv_m", "iso_c", "iso_cts", "wudi", "regmean", "fisher", "emr", "knots_ties"} <= set(OUTSIDE)


@pytest.mark.parametrize("rule", ["ties", "dare", "pcb", "breadcrumbs"])
def test_pruned_tasks_are_zeros_there_and_take_no_part_in_the_basis(rule):
    stacks = model(3)
    vectors = vectors_of(stacks)
    layers = layers_from_names(vectors.names, "tensor")
    kept = torch.tensor([[task != 1 or name != "square.weight" for name in layers.names] for task in range(3)])
    recipe = MergeRecipe(rule, subspace="knots", granularity="tensor")
    zeroed = dict(stacks) | {"square.weight": stacks["square.weight"] * torch.tensor([1.0, 0.0, 1.0])[:, None, None]}
    expected = merge(vectors_of(zeroed), recipe)
    assert_same_bits(merge(vectors, recipe, mask=LayerMask(vectors.tasks, layers.names, kept)), expected)


@pytest.mark.parametrize("rule", [rule for rule in WITHIN if RULES[rule].has_parts()])
def test_parts_add_up_and_are_pruned_and_weighed_behind_the_rule(rule):
    vectors = vectors_of(model(2 if rule in TWO_TASKS else 3))
    recipe = MergeRecipe(rule, 1.0, subspace="knots", prune_on="parts", granularity="tensor")
    plan = Merge(vectors, recipe).plan()
    whole = merge(vectors, recipe.replace(prune_on="task_vectors"))
    weights = [0.5, 0.0, 1.5][: len(vectors)]
    learnt = {task: {"*": weight} for task, weight in zip(vectors.tasks, weights, strict=True)}
    weighed = merge(vectors, recipe.replace(coefficients=learnt))
    for name in MATRICES:
        parts = plan.parts(name).double()
        assert_near(parts.sum(0), whole[name])
        assert_near(sum(weight * part for weight, part in zip(weights, parts, strict=True)), weighed[name])


@pytest.mark.parametrize("rule", ["ties", "dare_ties", "pcb", "magmax", "model_stock"])
def test_blocks_threads_memory_and_processes_time_change_no_bit(rule, use_threads):
    vectors = vectors_of(model(3))
    recipe = MergeRecipe(rule, subspace="knots", ratio=0.3, granularity="tensor")
    expected = merge(vectors, recipe)
    assert_same_bits(merge(vectors, recipe, execution=Execution(block_bytes=60)), expected)
    assert_same_bits(merge(vectors, recipe, max_memory="4GB"), expected)
    use_threads(3)
    assert_same_bits(merge(vectors, recipe), expected)


def test_elements_are_pruned_before_it_and_layers_scaled_behind_it():
    stacks = model(3)
    recipe = MergeRecipe("ties", 1.0, subspace="knots", elements={"ratio": 0.4}, granularity="tensor")
    thinned = {}
    for name, stack in stacks.items():
        rows = stack.reshape(3, stack[0].numel())
        drop = rows.abs().argsort(1)[:, : int(0.4 * rows.shape[1])]
        thinned[name] = rows.scatter(1, drop, 0.0).reshape(stack.shape)
    plain = merge(vectors_of(thinned), recipe.replace(elements=None))
    found = merge(vectors_of(stacks), recipe)
    for name in MATRICES:
        assert_near(found[name], plain[name])
    scaled = merge(vectors_of(stacks), recipe.replace(layer_scaling={"wide.weight": 0.5}))
    assert_near(scaled["wide.weight"], 0.5 * found["wide.weight"])
    assert_near(scaled["tall.weight"], found["tall.weight"])


def test_scales_share_a_plan_and_its_survey():
    vectors = vectors_of(model(3))
    recipe = MergeRecipe("ties", subspace=KnOTS())
    plan = Merge(vectors, recipe).plan().holding()
    assert_same_bits(
        dict(plan.rescaled(recipe.replace(scale=0.3)).tensors()), merge(vectors, recipe.replace(scale=0.3))
    )
    with pytest.raises(ValueError, match="rescaled"):
        plan.rescaled(MergeRecipe("ties"))
    lines = recipe.replace(layer_scaling=LiNeS(blocks=r"(\d)\.weight"))
    assert_same_bits(dict(plan.rescaled(lines).tensors()), merge(vectors, lines))


def test_only_included_matrices_move_and_a_merge_says_how_many():
    vectors = vectors_of(model(2))
    recipe = MergeRecipe("ties", subspace={"name": "knots", "include": ["table", "conv*", "wide.*"]})
    result = merge(vectors, recipe)
    assert {name for name, tensor in result.items() if tensor.any()} == {"table", "conv1.weight", "wide.weight"}
    told = Merge(vectors, recipe).plan().treatment
    assert told == "rule 'ties' treated 3 of 8 tensors in the space that their tasks share"
    with pytest.warns(UserWarning, match="treated 0 of 8 tensors in the space.*2-D tensors and 1x1 convolutions"):
        nothing = merge(vectors, recipe.replace(subspace=KnOTS(include=("none",))))
    assert not any(tensor.any() for tensor in nothing.values())


def test_what_a_wrapped_rule_is():
    rule = InSubspace(rule=RULES["ties"](density=0.3))
    assert (rule.name, rule.unit, rule.include, rule.works_on_matrices()) == ("ties", "tensor", ("*.weight",), True)
