"""Parts and their sums: one arithmetic for all that merges."""

import pytest
import torch
from _helpers.every_rule import SHAPES, statistics_for, vectors_for
from _helpers.states import assert_same_bits

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.engine import Execution
from lwptv_lightning.merging import Merge, add_parts
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.rules import RULES

SUMS = [name for name in sorted(RULES) if RULES[name].has_parts()]
FACTORS = {
    "stem.*": (0.3, 0.0, 1.1),
    "blocks.0*": (0.0, 0.7, 0.0),
    "blocks.1.mlp*": (0.0, 0.0, 0.0),
    "*": (1.0, 0.1, 2.0),
}
WAYS = [{"compiled": True}, {"compiled": False}, {"block_bytes": 60}, {"max_memory": 1 << 30}]


def recipe_of(rule, tasks, **fields):
    coefficients = {task: {glob: row[index] for glob, row in FACTORS.items()} for index, task in enumerate(tasks)}
    return MergeRecipe(rule, prune_on="parts", coefficients=coefficients, **{"scale": 0.8, **fields})


def factors_of(name, plan):
    position = next(index for index, layer in enumerate(plan.pruning.layers) if name in layer.tensors)
    return plan.pruning.scores.values[:, position]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", SUMS)
def test_what_is_added_from_parts_is_the_merge_to_the_bit(rule, dtype):
    vectors = vectors_for(rule, dtype)
    recipe, data = recipe_of(rule, vectors.tasks), statistics_for(rule, vectors)
    plan = Merge(vectors, recipe, data=data).plan()
    bare = Merge(vectors, recipe.replace(coefficients=None), data=data).plan()
    merged = dict(plan.tensors())
    for name in SHAPES:
        parts, factors = bare.parts(name), factors_of(name, plan)
        assert parts.shape == (len(vectors), *SHAPES[name])
        made = add_parts(name, vectors.base(name), parts, factors, 0.8)
        assert made.dtype == dtype
        assert_same_bits({name: made}, {name: merged[name]})
        oracle = vectors.base(name).double() + 0.8 * torch.einsum("t,t...->...", factors, parts.double())
        tolerance = 1e-2 if dtype.itemsize == 2 else 1e-5
        torch.testing.assert_close(merged[name].double(), oracle, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rule", SUMS)
def test_all_ways_give_the_same_bits(rule):
    vectors = vectors_for(rule)
    recipe, data = recipe_of(rule, vectors.tasks), statistics_for(rule, vectors)
    plan = Merge(vectors, recipe, data=data).plan()
    merged = dict(plan.tensors())
    for way in WAYS:
        assert_same_bits(merge(vectors, recipe, execution=Execution(**way), data=data), merged)
    assert_same_bits(dict(plan.holding().tensors()), merged)
    rescaled = recipe.replace(scale=-0.3, layer_scaling={"stem.conv": 0.5})
    assert_same_bits(dict(plan.holding().rescaled(rescaled).tensors()), merge(vectors, rescaled, data=data))


def test_coefficients_of_zero_keep_the_bases_bits():
    base = torch.tensor([-0.0, 1.0], dtype=torch.float16)
    nothing = torch.tensor([0.0, 1e-60], dtype=torch.float64)
    assert_same_bits({"w": add_parts("w", base, torch.ones(2, 2), nothing)}, {"w": base})


def test_it_can_be_differentiated_in_the_coefficients():
    factors = torch.tensor([0.5, 0.0], requires_grad=True)
    with torch.enable_grad():
        add_parts("w", torch.zeros(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), factors, 2.0).sum().backward()
    assert factors.grad.tolist() == [6.0, 0.0]


def test_parts_of_what_has_none():
    vectors = vectors_for("task_arithmetic")
    with pytest.raises(UnknownNameError, match="unknown merged weight 'scales'. Did you mean 'scale'"):
        Merge(vectors, MergeRecipe(prune_on="parts")).plan().parts("scales")
    with pytest.raises(ValueError, match="prune_on='parts', not 'task_vectors'"):
        Merge(vectors, MergeRecipe()).plan().parts("scale")
