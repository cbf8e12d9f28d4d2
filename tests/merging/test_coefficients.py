"""Coefficients of tasks and layers, brought to the layers of a merge."""

import pytest
import torch
from _helpers.states import open_vectors, plus, random_state

from lwptv_lightning import MergeRecipe, merge, plan_pruning
from lwptv_lightning.layers import Layer, Layers
from lwptv_lightning.merging import Merge
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.saliency import LayerMask

SHAPES = {"stem.weight": (3, 2), "stem.bias": (3,), "blocks.0.weight": (4, 3), "head.weight": (2, 4)}
GIVEN = {"a": {"blocks.*": 0, "*": 0.25}, "b": {"head": 0.0, "stem": 0.5, "*": 1.5}}
BY_HAND = {"stem": (0.25, 0.5), "blocks.0": (0.0, 1.5), "head": (0.25, 0.0)}


@pytest.fixture(scope="module")
def vectors():
    base = random_state(0, shapes=SHAPES)
    return open_vectors(base, {task: plus(base, random_state(seed, 0.1, SHAPES)) for seed, task in enumerate("ab", 1)})


def recipe_with(coefficients, rule="task_arithmetic", **fields):
    return MergeRecipe(rule, prune_on="parts", coefficients=coefficients, **{"scale": 0.8, **fields})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scaling", [None, {"head": 0.5}])
def test_each_layer_of_each_task_has_its_own(vectors, dtype, scaling):
    merged = merge(vectors, recipe_with(GIVEN, dtype=dtype, layer_scaling=scaling))
    for name in SHAPES:
        layer = name.rpartition(".")[0]
        scale = 0.8 * (scaling or {}).get(layer, 1.0)
        total = sum(c * tau for c, tau in zip(BY_HAND[layer], vectors.stack(name).double(), strict=True))
        torch.testing.assert_close(merged[name].double(), vectors.base(name).double() + scale * total)


def test_zeros_are_pruned_and_a_layer_of_zeros_is_the_bases(vectors):
    nothing = {task: {"stem": 0.0, "*": 1.0} for task in "ab"}
    recipe = recipe_with(nothing)
    plan = Merge(vectors, recipe).plan()
    assert dict(plan.mask)["a"] == {"stem": False, "blocks.0": True, "head": True}
    assert plan.pruning.layers.names == ("blocks.0", "head", "stem")
    assert plan.pruning.scores.values.tolist() == [[1.0, 1.0, 0.0]] * 2
    merged = merge(vectors, recipe)
    assert torch.equal(merged["stem.weight"], vectors.base("stem.weight"))
    assert plan.provenance(hashed=False).mask == {task: ["blocks.0", "head"] for task in "ab"}


def test_a_number_that_the_dtype_rounds_to_zero_is_pruned(vectors):
    recipe = recipe_with({task: {"*": 1e-60} for task in "ab"})
    assert not plan_pruning(vectors, recipe).mask.kept.any()
    assert plan_pruning(vectors, recipe.replace(dtype="float64")).mask.kept.all()


def test_they_compose_with_a_ratio_and_with_a_mask(vectors):
    recipe = recipe_with(GIVEN, ratio=0.34, keep=["head"])
    ratio_alone = plan_pruning(vectors, recipe.replace(coefficients=None))
    both = plan_pruning(vectors, recipe)
    zeros = plan_pruning(vectors, recipe_with(GIVEN)).mask.kept
    assert torch.equal(both.mask.kept, ratio_alone.mask.kept & zeros)
    assert torch.equal(both.scores.values, ratio_alone.scores.values)
    layers = both.mask.layers
    mask = LayerMask(("a", "b"), tuple(reversed(layers)), torch.tensor([[True, False, True], [True, True, True]]))
    plan = Merge(vectors, recipe_with(GIVEN), mask=mask).plan()
    assert torch.equal(plan.mask.kept, mask.in_order_of(layers).kept & zeros)
    assert {name: job.kept.tolist() for name, job in plan.jobs.items()} == {
        name: plan.mask.kept[:, layers.index(name.rpartition(".")[0])].tolist() for name in SHAPES
    }


def test_layers_that_are_given_count(vectors):
    low, high = Layer("low", ("stem.weight", "stem.bias")), Layer("high", ("blocks.0.weight", "head.weight"))
    layers = Layers((low, high), "module")
    given = {"a": {"low": 0.5, "high": 0}, "b": {"*": 1}}
    merged = merge(vectors, recipe_with(given), layers)
    expected = vectors.base("head.weight") + 0.8 * vectors.stack("head.weight")[1]
    torch.testing.assert_close(merged["head.weight"], expected)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"a": {"*": 1}}, ValueError, "hold none for these of the 2 tasks: b.* They hold those of a"),
        ({**GIVEN, "bb": {"*": 1}}, UnknownNameError, "unknown task in coefficients 'bb'. Did you mean 'b'"),
        (
            {**GIVEN, "b": {"heads": 1, "*": 1}},
            UnknownNameError,
            "of task 'b' 'heads'. Did you mean 'head'",
        ),
        ({**GIVEN, "b": {"stem": 1}}, ValueError, r"task 'b' match none of these of the 3 layers: blocks.0, head\."),
        ({**GIVEN, "b": {"*": 1e39}}, ValueError, "1e.39 of task 'b' is beyond 3.40282e.38"),
    ],
)
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_what_does_not_fit_is_refused_before_anything_is_read(vectors, given, error, message, ratio, monkeypatch):
    monkeypatch.setattr(type(vectors), "stack", lambda *_: pytest.fail("a task vector was read"))
    monkeypatch.setattr("lwptv_lightning.merging.prune.collect_statistics", lambda *_, **__: pytest.fail("collected"))
    with pytest.raises(error, match=message):
        Merge(vectors, recipe_with(given, ratio=ratio)).plan()
