import copy
from functools import partial

import pytest
import torch
from torch import nn

from lwptv_lightning import LayerMask, Layers, MergeRecipe, TaskVectors, merge, trace_layers
from lwptv_lightning.evaluation import merge_model_
from lwptv_lightning.evaluation.merging import require_fit

PRUNING = MergeRecipe("ties", ratio=0.5)


@pytest.fixture
def vectors(model, fine_tuned):
    return TaskVectors.open(
        copy.deepcopy(model), {task: fine_tuned(model.state_dict(), s) for s, task in enumerate("ab")}
    )


def holds(model, tensors):
    return all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


def test_it_installs_what_merge_returns_and_tells_what_was_pruned(model, vectors):
    plan = merge_model_(model, vectors, PRUNING, partial(trace_layers, model), {})
    assert holds(model, merge(vectors, PRUNING, trace_layers(model)))
    assert (~plan.pruning.mask.kept).sum(1).tolist() == [1, 1]


def test_layers_are_not_asked_for_where_none_are_needed(model, vectors):
    assert merge_model_(model, vectors, MergeRecipe(), pytest.fail, {}).pruning is None
    assert holds(model, merge(vectors, MergeRecipe()))


def test_a_mask_takes_the_place_of_the_recipes(model, vectors):
    traced = Layers(tuple(reversed(tuple(trace_layers(model)))), "module")  # an order that names do not tell
    nothing = LayerMask(vectors.tasks, traced.names, torch.zeros(2, 2, dtype=torch.bool))
    for recipe in (PRUNING, MergeRecipe()):
        plan = merge_model_(model, vectors, recipe, lambda granularity: traced, {"mask": nothing})
        assert plan.pruning is None
        assert plan.mask is nothing
    assert holds(model, {name: vectors.base(name) for name in vectors.names})


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_left_out_is_the_models_own_or_the_bases(whole, model, vectors, fine_tuned):
    state = copy.deepcopy(model.state_dict())
    partly = TaskVectors.open(state, {"a": fine_tuned(state, 1)}, exclude=("2.*",))
    nn.init.ones_(model[2].weight)
    nn.init.ones_(model[2].bias)
    merge_model_(model, partly, MergeRecipe(), pytest.fail, {}, whole=whole)
    assert holds(model[0], {name.removeprefix("0."): value for name, value in merge(partly, MergeRecipe()).items()})
    assert all(
        torch.equal(own, state[f"2.{n}"] if whole else torch.ones_like(own)) for n, own in model[2].state_dict().items()
    )


# Whether it fits


@pytest.fixture
def partial_vectors(fine_tuned):
    base = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)).state_dict()
    return TaskVectors.open(base, {"a": fine_tuned(base, 0)}, exclude=("1.*",))


def test_an_excluded_layer_has_the_bases_shape_or_would_stay_random(partial_vectors):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    require_fit(model, partial_vectors)
    merge_model_(model, partial_vectors, MergeRecipe(), pytest.fail, {}, whole=True)
    assert torch.equal(model[1].weight, partial_vectors.base("1.weight"))
    with pytest.raises(ValueError, match=r"would stay random: 1\.weight, 1\.bias\. '1\.weight' has shape \(5, 3\)"):
        require_fit(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5)), partial_vectors)


def test_what_does_not_fit_is_named(partial_vectors):
    with pytest.raises(ValueError, match=r"Linear has no tensor 0\.weight"):
        require_fit(nn.Linear(2, 3), partial_vectors)
    with pytest.raises(ValueError, match=r"'0\.weight' has shape \(7, 2\), the base \(3, 2\)"):
        require_fit(nn.Sequential(nn.Linear(2, 7), nn.Linear(7, 4)), partial_vectors)
    larger = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"would stay random: 2\.weight, 2\.bias"):
        require_fit(larger, partial_vectors)
