import math

import pytest
import torch
from _helpers.models import Tied, fine_tuned_model
from torch import nn

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors, merge
from lwptv_lightning.search.change import change_of
from lwptv_lightning.search.weights import Weights

CPU = torch.device("cpu")


class Mixed(nn.Module):
    """Running statistics, a counter, and a weight under two names."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.tied = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Tied()

    def forward(self, images):
        return self.tied(self.bn(self.conv(images)))


@pytest.fixture
def module():
    torch.manual_seed(0)
    model = Mixed()
    tasks = {task: fine_tuned_model(model, seed).state_dict() for seed, task in enumerate("ab", start=1)}
    return MergeModule(model, TaskVectors.open(model.state_dict(), tasks, model=model))


def made(module, candidates, **options):
    return {each.name: each.change for each in Weights(module, CPU, options).of(candidates)}


def test_recipes_have_the_norm_of_what_they_change(module):
    recipes = {
        "sum": MergeRecipe(),
        "half": MergeRecipe(scale=0.15),
        "pruned": MergeRecipe("ties", ratio=0.5),
        "nothing": MergeRecipe(prune=["*"]),
    }
    vectors = module.vectors
    found = made(module, recipes)
    for name, recipe in recipes.items():
        layers = module.layers() if recipe.needs_layers else None
        merged = merge(vectors, recipe, layers)
        counted = [each for each in merged if each not in vectors.tied and each not in vectors.copied]
        squares = [(merged[each].double() - vectors.base(each).double()).square().sum() for each in counted]
        assert found[name] == pytest.approx(math.sqrt(sum(squares)), rel=1e-12), name
    assert found["sum"] > found["half"] > found["nothing"]
    assert found == made(module, recipes, max_memory="100MB")


def test_the_base_has_no_change_in_any_dtype(module):
    vectors = module.vectors
    base = {name: vectors.base(name) for name in vectors.names}
    every = dict(module.model.state_dict())
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in every.items()}
    assert set(made(module, {"base": base, "every": every, "halves": halves}).values()) == {0}


def test_weights_that_are_given_have_their_norm(module):
    vectors = module.vectors
    expert = {name: vectors.expert("a", name) for name in vectors.names + vectors.averaged}
    bias = {"conv.bias": vectors.base("conv.bias") + torch.tensor([0.0, 3.0, 4.0])}
    found = made(module, {"expert": expert, "bias": bias})
    squares = [(tensor.double() - vectors.base(name).double()).square().sum() for name, tensor in expert.items()]
    assert found["expert"] == pytest.approx(math.sqrt(sum(squares)), rel=1e-12)
    assert found["bias"] == pytest.approx(5, rel=1e-6)


@pytest.mark.parametrize("name", ["tied.encoder.weight", "tied.decoder.weight"])
def test_a_tied_weight_counts_once_by_either_of_its_names(name, module):
    changed = {name: module.vectors.base(name) + 1.0}
    expected = math.sqrt(changed[name].numel())
    assert made(module, {"tied": changed})["tied"] == pytest.approx(expected, rel=1e-6)


def test_a_tied_weight_counts_where_the_base_has_it_under_one_name(module):
    module.model.tied.encoder.weight = module.model.tied.decoder.weight
    state = dict(module.model.state_dict())
    del state["tied.decoder.weight"]  # as transformers stores it
    tuned = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    alone = MergeModule(module.model, TaskVectors.open(state, {"a": tuned}))
    whole = {name: tensor + 0 for name, tensor in module.model.state_dict().items()}
    whole["tied.encoder.weight"] = whole["tied.decoder.weight"] = whole["tied.decoder.weight"] + 1
    expected = math.sqrt(whole["tied.decoder.weight"].numel())
    assert made(alone, {"tied": whole})["tied"] == pytest.approx(expected, rel=1e-6)


def test_sums_are_the_same_for_any_number_of_threads(use_threads):
    torch.manual_seed(0)
    base = torch.randn(3, 100_003)
    vectors = TaskVectors.open({"w": base}, {"a": {"w": base + 1}})
    tensor = base + torch.randn_like(base)
    found = []
    for threads in (1, 2, 5):
        use_threads(threads)
        found.append(change_of({"w": tensor}, vectors))
    assert len(set(found)) == 1
    assert found[0] == pytest.approx(float((tensor.double() - base.double()).norm()), rel=1e-12)


def test_small_changes_in_half_precision_do_not_vanish_in_the_sum():
    base = torch.full((50_000,), 1.0, dtype=torch.float16)
    vectors = TaskVectors.open({"w": base}, {"a": {"w": base + 0.001}})
    change = float((base + 0.001)[0].double() - 1)
    assert change_of({"w": base + 0.001}, vectors) == pytest.approx(change * math.sqrt(50_000), rel=1e-12)


def test_kinds_of_numbers_and_shapes():
    base = {"w": torch.zeros(2), "count": torch.tensor(3), "none": torch.zeros(0)}
    vectors = TaskVectors.open(base, {"a": {name: tensor + 1 for name, tensor in base.items()}})
    assert change_of({"w": torch.tensor([3, 4]), "count": torch.tensor(9), "none": torch.zeros(0)}, vectors) == 5
    assert change_of({"w": torch.zeros(3)}, vectors) is None
    assert change_of({"other": torch.ones(3)}, vectors) == 0
    assert math.isnan(change_of({"w": torch.tensor([math.nan, math.inf])}, vectors))
