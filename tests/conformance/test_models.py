"""Every rule on every kind of model: a new rule and a new kind are tested here without an edit."""

import functools
import warnings

import pytest
import torch
from _helpers.every_rule import statistics_for
from _helpers.models import MODELS, make_model, states_of, vectors_of_model
from _helpers.states import assert_close, assert_same_bits

from lwptv_lightning import MergeRecipe, TaskVectors, merge, trace_layers
from lwptv_lightning.engine import Execution
from lwptv_lightning.rules import RULES

EVERY_RULE = pytest.mark.parametrize("rule", sorted(RULES))
RECIPES = {"plain": {}, "pruned": {"ratio": 0.5}, "elements": {"elements": {"ratio": 0.3}}}
EVERY_RECIPE = pytest.mark.parametrize("recipe", RECIPES)


@pytest.fixture(scope="module", params=MODELS)
def inputs(request):
    """A model and its task vectors."""
    model = make_model(request.param)
    return model, vectors_of_model(model)


layers_of = functools.cache(trace_layers)


def merged(rule, inputs, recipe="plain", **options):
    model, vectors = inputs
    options = {"data": statistics_for(rule, vectors), "layers": layers_of(model), **options}
    return merge(vectors, MergeRecipe(rule, **RECIPES[recipe]), **options)


@functools.cache
def turned(model):
    """The task vectors of files whose tensors are in the opposite order."""
    base, tasks = states_of(model)
    files = {task: dict(reversed(state.items())) for task, state in tasks.items()}
    return TaskVectors.open(dict(reversed(base.items())), files, model=model)


@EVERY_RULE
@EVERY_RECIPE
def test_the_result_is_a_whole_finite_model_that_computes(rule, recipe, inputs):
    model, vectors = inputs
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = merged(rule, inputs, recipe)
    assert {name: (tuple(t.shape), t.dtype) for name, t in found.items()} == {
        name: (header.shape, header.dtype) for name, header in vectors.headers.items()
    }
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    changed = any(not torch.equal(found[name], vectors.base(name)) for name in vectors.names)
    # A rule that finds nothing to work on says so; one that finds little may be pruned of it.
    assert changed or caught or recipe == "pruned"
    fresh = make_model(next(kind for kind, cls in MODELS.items() if type(model) is cls))
    fresh.load_state_dict(found)
    assert torch.isfinite(fresh(torch.randn(2, 3, 8, 8))).all()


@EVERY_RULE
@EVERY_RECIPE
def test_blocks_and_the_order_of_the_file_change_no_bit(rule, recipe, inputs):
    model, vectors = inputs
    expected = merged(rule, inputs, recipe)
    assert_same_bits(merged(rule, inputs, recipe, execution=Execution(block_bytes=400)), expected)
    found = merged(rule, (model, turned(model)), recipe, data=statistics_for(rule, vectors))
    assert_same_bits({name: found[name] for name in expected}, expected)


@EVERY_RULE
def test_what_no_rule_works_on_is_the_mean_or_the_bases(rule, inputs):
    _, vectors = inputs
    found = merged(rule, inputs)
    for name in vectors.averaged:
        mean = torch.stack([vectors.expert(task, name) for task in vectors.tasks]).mean(0)
        torch.testing.assert_close(found[name], mean)
    for name in set(vectors.headers) - set(vectors.names) - set(vectors.averaged) - set(vectors.tied):
        assert torch.equal(found[name], vectors.base(name))
    for name, first in vectors.tied.items():
        assert torch.equal(found[name], found[first])


@EVERY_RULE
def test_pruning_everything_gives_the_base(rule, inputs):
    model, vectors = inputs
    recipe = MergeRecipe(rule, ratio=1.0)
    found = merge(vectors, recipe, layers_of(model), data=statistics_for(rule, vectors))
    assert_same_bits(found, {name: vectors.base(name) for name in vectors.headers})


@EVERY_RULE
def test_the_order_of_tasks_does_not_matter(rule, inputs):
    _, vectors = inputs
    data = statistics_for(rule, vectors)
    swapped = merge(vectors.select(["b", "a"]), MergeRecipe(rule), data=data)
    assert_close(swapped, merge(vectors, MergeRecipe(rule), data=data))
