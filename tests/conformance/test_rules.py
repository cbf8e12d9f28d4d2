"""What every merging rule must do; a new rule is tested here without an edit."""

import dataclasses
import functools
import math

import pytest
import torch
from _helpers import every_rule
from _helpers.every_rule import SHAPES, TWO_TASKS, changed, statistics_for, task_names
from _helpers.states import assert_close, assert_same_bits, open_vectors, random_state
from safetensors.torch import save_file

from lwptv_lightning import MergeRecipe, TaskVectors, merge
from lwptv_lightning.engine import Execution, Stream
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.merging import Merge
from lwptv_lightning.rules import RULES, MergeContext, make_rule
from lwptv_lightning.saliency import LayerMask

# Rules for which c * tau in does not mean c * merged out, and why.
NOT_EQUIVARIANT = {
    "wudi": "the learning rate is a distance",
    "pcb": "the score has a tanh of the task vectors",
}


EVERY_RULE = pytest.mark.parametrize("rule", sorted(RULES))
SUMS = pytest.mark.parametrize("rule", [name for name in sorted(RULES) if RULES[name].has_parts()])


# That rules leave their task vectors alone is a test of its own.
vectors_for = functools.cache(lambda rule, dtype=torch.float32: every_rule.vectors_for(rule, dtype))


def merged(rule, vectors, layers=None, **options):
    recipe = {key: options.pop(key) for key in ("scale", "ratio", "prune", "prune_on") if key in options}
    options.setdefault("statistics", statistics_for(rule, vectors))
    return merge(vectors, MergeRecipe(rule=rule, **recipe), layers, **options)


def mask_without(vectors, pruned):
    """Prune the pairs of task and layer for which ``pruned(task, layer)`` holds."""
    layers = layers_from_names(vectors.names)
    kept = [[not pruned(task, layer) for layer in layers.names] for task in vectors.tasks]
    return layers, LayerMask(vectors.tasks, layers.names, torch.tensor(kept))


def assert_finite(state):
    for name, tensor in state.items():
        assert torch.isfinite(tensor).all(), name


@EVERY_RULE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_result_has_shape_and_dtype_of_the_base(rule, dtype):
    vectors = vectors_for(rule, dtype)
    result = merged(rule, vectors)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in result.items()} == {
        name: (shape, dtype) for name, shape in SHAPES.items()
    }
    assert_finite(result)


@EVERY_RULE
def test_computes_in_float64_on_request(rule):
    vectors = vectors_for(rule)
    assert_close(merged(rule, vectors, dtype=torch.float64), merged(rule, vectors), 1e-4)


@EVERY_RULE
def test_leaves_its_inputs_alone_and_repeats_bit_for_bit(rule):
    vectors = vectors_for(rule)
    before = {name: (vectors.base(name).clone(), vectors.stack(name)) for name in vectors.names}
    first, second = merged(rule, vectors), merged(rule, vectors)
    assert_same_bits(first, second)
    for name, (base, stack) in before.items():
        assert torch.equal(vectors.base(name), base)
        assert torch.equal(vectors.stack(name), stack)


@EVERY_RULE
def test_leaves_files_alone(rule, tmp_path):
    in_memory = vectors_for(rule)
    states = {"base": {name: in_memory.base(name) for name in SHAPES}}
    for task in in_memory.tasks:
        states[task] = {name: in_memory.expert(task, name) for name in SHAPES}
    paths = {name: tmp_path / f"{name}.safetensors" for name in states}
    for name, path in paths.items():
        save_file(states[name], path)
    before = {name: path.read_bytes() for name, path in paths.items()}
    on_disk = TaskVectors.open(paths["base"], {task: paths[task] for task in in_memory.tasks})
    statistics = statistics_for(rule, in_memory)
    expected = merged(rule, in_memory, statistics=statistics)
    assert_same_bits(merged(rule, on_disk, statistics=statistics), expected)
    assert {name: path.read_bytes() for name, path in paths.items()} == before


@EVERY_RULE
def test_order_of_tasks_does_not_matter(rule):
    # The rules that take one number for each task, or two tasks of different roles, are alike for all by default.
    vectors = vectors_for(rule)
    statistics = statistics_for(rule, vectors)
    reordered = vectors.select(reversed(vectors.tasks))
    assert_close(merged(rule, reordered, statistics=statistics), merged(rule, vectors, statistics=statistics))


@EVERY_RULE
def test_order_of_tensors_does_not_matter(rule):
    vectors, reordered = vectors_for(rule), every_rule.vectors_for(rule, order=reversed(SHAPES))
    statistics = statistics_for(rule, vectors)
    assert reordered.names == tuple(reversed(vectors.names))
    assert_same_bits(merged(rule, reordered, statistics=statistics), merged(rule, vectors, statistics=statistics))


@EVERY_RULE
def test_streaming_gives_what_merging_at_once_gives(rule):
    vectors = vectors_for(rule)
    plan = Merge(vectors, MergeRecipe(rule), data=statistics_for(rule, vectors)).plan()
    assert_same_bits(dict(plan.tensors()), merged(rule, vectors))


@EVERY_RULE
def test_blocks_give_what_whole_tensors_give(rule):
    vectors = vectors_for(rule)
    execution = Execution(block_bytes=5 * 4 * len(vectors))
    assert_same_bits(merged(rule, vectors, execution=execution), merged(rule, vectors))


@EVERY_RULE
def test_what_is_merged_in_parts_is_what_combine_makes_of_the_whole(rule):
    vectors, statistics = vectors_for(rule), statistics_for(rule, vectors_for(rule))
    result = merged(rule, vectors, scale=1.0, statistics=statistics)
    made, survey = make_rule(rule), make_rule(rule).survey(Stream.of(vectors, data=statistics))
    for name in vectors.names:
        collected = [statistics[task].get(name) for task in vectors.tasks] if statistics else []
        stacked = torch.stack(collected) if collected and collected[0] is not None else None
        total = vectors.base(name) + made.combine(
            vectors.stack(name), MergeContext(name, vectors.tasks, survey, stacked)
        )
        assert torch.equal(result[name], total), name


@EVERY_RULE
def test_zero_task_vectors_give_the_base(rule):
    base = random_state(0, shapes=SHAPES)
    vectors = open_vectors(base, {task: dict(base) for task in task_names(rule)})
    assert_same_bits(merged(rule, vectors), base)


@EVERY_RULE
def test_one_pruned_task_leaves_finite_weights(rule):
    vectors = vectors_for(rule)
    layers, mask = mask_without(vectors, lambda task, layer: task == "a")
    assert_finite(merged(rule, vectors, layers, mask=mask))


@EVERY_RULE
def test_all_but_one_task_pruned_leaves_finite_weights(rule):
    vectors = vectors_for(rule)
    layers, mask = mask_without(vectors, lambda task, layer: task != "a")
    assert_finite(merged(rule, vectors, layers, mask=mask))


def constant(seed, size):
    return {name: torch.full(shape, size * seed) for name, shape in SHAPES.items()}


def one_entry(seed, size):
    state = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for tensor in state.values():
        tensor.view(-1)[seed % tensor.numel()] = size
    return state


DEGENERATE = {
    "equal": lambda seed, size: changed(7, size),
    "parallel": lambda seed, size: changed(7, seed * size),
    "opposite": lambda seed, size: changed(7, size if seed % 2 else -size),
    "rank 1": constant,
    "one entry": one_entry,
    "tiny": lambda seed, size: changed(seed, 1e-30 * size),
    "huge": lambda seed, size: changed(seed, 1e12 * size),
}


@EVERY_RULE
@pytest.mark.parametrize("change", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_task_vectors_leave_finite_weights(rule, change):
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    tasks = {task: change(seed, 0.1) for seed, task in enumerate(task_names(rule), start=1)}
    vectors = open_vectors(zeros, tasks)
    result = merged(rule, vectors)
    assert_finite(result)
    assert_same_bits(merged(rule, vectors), result)


@pytest.mark.parametrize("rule", sorted(set(RULES) - TWO_TASKS))
def test_merges_a_single_task(rule):
    vectors = vectors_for(rule).select(["a"])
    result = merged(rule, vectors)
    assert_finite(result)
    assert result.keys() == SHAPES.keys()


@pytest.mark.parametrize("rule", sorted(set(RULES) - set(NOT_EQUIVARIANT)))
def test_follows_the_scale_of_the_task_vectors(rule):
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}

    def merge_times(factor):
        tasks = {task: changed(seed, 0.5 * factor) for seed, task in enumerate(task_names(rule), start=1)}
        return merged(rule, open_vectors(zeros, tasks))

    single = merge_times(1.0)
    assert_close(merge_times(4.0), {name: 4 * tensor for name, tensor in single.items()})


@EVERY_RULE
def test_a_layer_that_every_task_prunes_is_the_base_bit_for_bit(rule):
    vectors = vectors_for(rule, torch.bfloat16)
    result = merged(rule, vectors, layers_from_names(vectors.names), prune=["blocks.0.attn*"])
    for name in ("blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight"):
        assert torch.equal(result[name], vectors.base(name))
    assert any(not torch.equal(result[name], vectors.base(name)) for name in SHAPES)


@EVERY_RULE
def test_pruning_everything_gives_the_base(rule):
    vectors = vectors_for(rule)
    assert_same_bits(merged(rule, vectors, ratio=1.0), random_state(0, shapes=SHAPES))


@SUMS
def test_parts_sum_to_the_merged_model(rule):
    vectors = vectors_for(rule)
    assert_close(merged(rule, vectors, prune_on="parts"), merged(rule, vectors), 1e-6)


@SUMS
def test_pruned_parts_are_left_out_of_the_sum(rule):
    vectors = vectors_for(rule)
    masks = {
        task: mask_without(vectors, lambda other, layer, task=task: other != task and layer.startswith("blocks"))
        for task in vectors.tasks
    }
    base, whole = random_state(0, shapes=SHAPES), merged(rule, vectors)
    alone = [merged(rule, vectors, layers, mask=mask, prune_on="parts") for layers, mask in masks.values()]
    for name in SHAPES:
        if name.startswith("blocks"):
            total = sum(model[name] - base[name] for model in alone)
            torch.testing.assert_close(base[name] + total, whole[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("rule", [name for name in sorted(RULES) if not RULES[name].has_parts()])
def test_a_rule_without_parts_refuses_to_prune_them(rule):
    with pytest.raises(ValueError, match="sum over tasks"):
        MergeRecipe(rule=rule, prune_on="parts")


@EVERY_RULE
def test_published_scale_is_the_default(rule):
    vectors, published = vectors_for(rule), RULES[rule].published_scale
    assert MergeRecipe(rule=rule).effective_scale == published
    assert_same_bits(merged(rule, vectors), merged(rule, vectors, scale=published))


@EVERY_RULE
def test_scale_multiplies_the_merged_task_vector(rule):
    vectors, base = vectors_for(rule), random_state(0, shapes=SHAPES)
    once, twice = merged(rule, vectors, scale=1.0), merged(rule, vectors, scale=2.0)
    for name in SHAPES:
        torch.testing.assert_close(twice[name] - base[name], 2 * (once[name] - base[name]), atol=1e-5, rtol=1e-5)


@EVERY_RULE
def test_recipe_survives_json(rule):
    recipe = MergeRecipe(rule=rule, scale=0.5, ratio=0.25)
    assert MergeRecipe.from_json(recipe.to_json()) == recipe


@EVERY_RULE
def test_says_what_it_is(rule):
    described = RULES[rule]
    assert described.paper.startswith("https://")
    assert math.isfinite(described.published_scale)
    assert "Example:" in described.__doc__
    assert "Reference:" in described.__doc__
    assert all(f"{field.name}:" in described.__doc__ for field in dataclasses.fields(described))


@pytest.mark.parametrize("rule", [name for name in sorted(RULES) if RULES[name].needs])
def test_asks_for_the_statistics_it_needs(rule):
    with pytest.raises(ValueError, match=RULES[rule].needs):
        merged(rule, vectors_for(rule), statistics=None)


def outside(allowed):
    """Return values that a hyper-parameter with this range must refuse."""
    if allowed[0] in "([" and allowed[-1] in ")]":
        low, high = (float(end) for end in allowed[1:-1].split(","))
        ends = [end for end, bracket in ((low, allowed[0]), (high, allowed[-1])) if bracket in "()"]
        beyond = [low - 1, high + 1]
        return [*ends, *beyond, math.nan, "0.5"]
    if allowed.endswith("..."):
        return [int(allowed.split(",")[0]) - 1, 1.5, True]
    if allowed == "true, false":
        return [1, "yes"]
    if allowed == "one number per task":
        return ["abc", (math.inf,), 1.0]
    return ["no such", "*.weight", 3]


CASES = [
    (rule, field.name, value)
    for rule in sorted(RULES)
    for field in dataclasses.fields(RULES[rule])
    for value in outside(field.metadata["range"])
]


@pytest.mark.parametrize(("rule", "parameter", "value"), CASES)
def test_refuses_values_outside_the_range(rule, parameter, value):
    with pytest.raises((ValueError, TypeError), match=parameter):
        make_rule({"name": rule, parameter: value})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@EVERY_RULE
def test_gpu_gives_what_the_cpu_gives(rule):
    vectors = vectors_for(rule)
    result = merged(rule, vectors, device="cuda")
    assert all(tensor.is_cuda for tensor in result.values())
    assert_close({name: tensor.cpu() for name, tensor in result.items()}, merged(rule, vectors))
