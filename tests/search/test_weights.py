"""Candidates share what they can, and each has the weights that its merge gives on its own, to the bit."""

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from _helpers.models import Tied, fine_tuned_model
from _helpers.states import assert_same_bits
from torch import nn

from lwptv_lightning import LayerMask, LiNeS, MergeModule, MergeRecipe, TaskVectors, merge, trace_layers
from lwptv_lightning.rules import RULES
from lwptv_lightning.search import weights
from lwptv_lightning.search.weights import Weights

CPU = torch.device("cpu")


class Both(nn.Module):
    """Batch normalisation, blocks, and a weight under two names."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)))
        self.tied = Tied()

    def forward(self, images):
        return self.tied(self.blocks(self.bn(self.conv(images))))


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Both().eval()


def vectors_of(model, dtype=torch.float32):
    def cast(state):
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}

    tasks = {task: cast(fine_tuned_model(model, seed).state_dict()) for seed, task in enumerate("abc", start=1)}
    return TaskVectors.open(cast(model.state_dict()), tasks, model=model)


def assert_as_alone(tensors, module, recipe):
    """Check that a model's tensors are those of a merge that shares nothing."""
    layers = module.layers(recipe.granularity) if recipe.needs_layers else None
    merged = merge(module.vectors, recipe, layers)
    own = module.model.state_dict()
    left_out = own.keys() - tensors.keys()
    assert left_out in ({"tied.encoder.weight"}, {"tied.decoder.weight"})  # one tensor
    assert_same_bits(tensors, {name: merged[name].to(own[name].dtype) for name in tensors})


COEFFICIENTS = [
    {"scale": 0.3},
    {},
    {"layer_scaling": LiNeS(alpha=None, beta=0.3)},
    {"scale": -0.7, "layer_scaling": LiNeS(alpha=0.1, blocks=r"blocks\.(\d)\.")},
    {"layer_scaling": {"conv": 0.25, "tied.decoder": 2.0}},
]
UNSCALED = [
    {"rule": "ties"},
    {"rule": "dare_ties", "ratio": 0.5, "score": "l2"},
    {"rule": "dare_ties", "ratio": 0.3},
    {"rule": "tsv_m", "ratio": 0.5},
    {"rule": "breadcrumbs", "elements": {"ratio": 0.5}},
    {"rule": "magnitude", "ratio": 0.5, "prune_on": "parts"},
    {"rule": "magnitude", "prune_on": "parts", "coefficients": {task: {"conv": 0, "*": 0.3} for task in "abc"}},
    {"rule": "magnitude", "prune_on": "parts", "coefficients": {task: {"conv": 0, "*": 0.4} for task in "abc"}},
    {"rule": "ties", "calibrate": {"name": "svc", "alpha": 0.5}},
    {"rule": "ties", "calibrate": {"name": "svc", "alpha": 0.5, "scale": 0.7}},
    {"rule": "tsv_m", "ratio": 0.5, "prune_on": "parts", "calibrate": "subspace_boosting"},
]


@pytest.mark.parametrize("max_memory", [None, "100MB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_candidate_is_what_its_merge_gives_alone(dtype, max_memory, model):
    module = MergeModule(model, vectors_of(model, dtype))
    recipes = [MergeRecipe(**unscaled, **changed) for changed in COEFFICIENTS for unscaled in UNSCALED]
    candidates = {f"{number}": recipe for number, recipe in enumerate(recipes)}
    found = {each.name: each for each in Weights(module, CPU, {"max_memory": max_memory}).of(candidates)}
    assert found.keys() == candidates.keys()
    for name, recipe in candidates.items():
        assert_as_alone(found[name].tensors, module, recipe)


def test_half_precision_is_added_in_the_dtype_of_the_base(model):
    module = MergeModule(model, vectors_of(model, torch.float16))
    candidates = {f"{scale}": MergeRecipe("ties", scale) for scale in (0.1, 0.2, 0.4)}
    for each in Weights(module, CPU, {}).of(candidates):
        assert_as_alone(each.tensors, module, candidates[each.name])


@dataclass
class Calls:
    """What was asked for while candidates were made."""

    counts: Counter

    def of(self, module, recipes, **options):
        self.counts.clear()
        candidates = {f"{number}": recipe for number, recipe in enumerate(recipes)}
        return [int(each.name) for each in Weights(module, CPU, options).of(candidates)]


@pytest.fixture
def calls(monkeypatch):
    counts = Counter()

    def count(owner, name, key):
        function = getattr(owner, name)

        def counted(*given, **named):
            counts[key] += 1
            return function(*given, **named)

        monkeypatch.setattr(owner, name, counted)

    for rule in ("ties", "emr"):
        count(RULES[rule], "survey", f"surveys by {rule}")
        count(RULES[rule], "combine", f"tensors by {rule}")
    count(weights, "collect_statistics", "statistics")
    return Calls(counts)


def test_recipes_that_differ_in_coefficients_share_one_merged_task_vector(model, calls):
    module = MergeModule(model, vectors_of(model))
    recipes = [MergeRecipe("ties", ratio=ratio, **own) for own in COEFFICIENTS for ratio in (0.0, 0.5)]
    order = calls.of(module, recipes)
    assert order == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    tensors = len(module.vectors.names)
    assert calls.counts["surveys by ties"] == 2
    assert tensors < calls.counts["tensors by ties"] <= 2 * tensors  # a layer that all tasks prune takes no rule
    assert calls.counts["statistics"] == 1


def test_calibrations_share_a_survey_and_their_scales_afterwards_a_merged_task_vector(model, calls):
    module = MergeModule(model, vectors_of(model))
    recipes = [
        MergeRecipe("ties", before, calibrate={"name": "svc", "alpha": alpha, "scale": after})
        for after in (1.0, 0.5, 0.3)
        for alpha in (0.1, 1.0)
        for before in (0.5, 1.0)
    ]
    assert calls.of(module, recipes) == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert calls.counts["surveys by ties"] == 1
    assert calls.counts["tensors by ties"] == 4 * len(module.vectors.names)


def test_without_room_for_it_the_survey_is_shared(model, calls, monkeypatch):
    module = MergeModule(model, vectors_of(model))
    recipes = [MergeRecipe("ties", scale) for scale in (0.1, 0.2, 0.3)]
    monkeypatch.setattr("lwptv_lightning.merging.plan.needed_memory", lambda *given: 10**9)
    calls.of(module, recipes, max_memory="1GB")
    assert calls.counts["surveys by ties"] == 1
    assert calls.counts["tensors by ties"] == 3 * (len(module.vectors.names) + 1)  # the tied one once for each name


def test_what_makes_the_same_mask_shares_its_survey(model, calls):
    module = MergeModule(model, vectors_of(model))
    scores = [("l2", 0.5), ("l2", 0.51), ("random", 0.5), ("l2", 0.2)]
    recipes = [MergeRecipe("ties", scale, score=score, ratio=ratio) for scale in (1.0, 0.5) for score, ratio in scores]
    order = calls.of(module, recipes)
    assert order == [0, 1, 4, 5, 2, 6, 3, 7]
    assert calls.counts["surveys by ties"] == 3


def test_tasks_share_a_survey_and_each_granularity_its_statistics(model, calls):
    module = MergeModule(model, vectors_of(model))
    tasks = [MergeRecipe("emr", scale, task=task) for scale in (1.0, 0.5) for task in ("a", "b", None)]
    assert calls.of(module, tasks) == [0, 3, 1, 4, 2, 5]
    assert calls.counts["surveys by emr"] == 1
    assert calls.counts["tensors by emr"] == 3 * len(module.vectors.names)
    pruned = [
        MergeRecipe("ties", ratio=ratio, granularity=granularity, dtype=dtype)
        for ratio in (0.3, 0.6)
        for granularity in ("module", "tensor")
        for dtype in ("float32", "float64")
    ]
    calls.of(module, pruned)
    assert calls.counts["statistics"] == 4


def test_a_given_mask_says_all_of_pruning(model, calls):
    module, layers = MergeModule(model, vectors_of(model)), trace_layers(model)
    layers = layers.restrict(module.vectors.names)
    kept = (torch.arange(3 * len(layers)) % 3 > 0).reshape(3, -1)
    mask = LayerMask(module.vectors.tasks, layers.names, kept)
    recipes = [MergeRecipe("ties", scale, ratio=ratio) for scale in (1.0, 0.4) for ratio in (0.0, 0.9)]
    calls.of(module, recipes, mask=mask)
    assert calls.counts["surveys by ties"] == 1
    assert not calls.counts["statistics"]
    for each in Weights(module, CPU, {"mask": mask}).of({"x": recipes[0], "y": recipes[3]}):
        expected = merge(module.vectors, recipes[0 if each.name == "x" else 3], layers, mask=mask)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in each.tensors.items())


def test_rules_of_other_hyper_parameters_share_nothing(model, calls):
    module = MergeModule(model, vectors_of(model))
    calls.of(module, [MergeRecipe({"name": "ties", "density": density}) for density in (0.2, 0.4, 0.2)])
    assert calls.counts["surveys by ties"] == 2


def test_seconds_are_those_of_a_merge_on_its_own(model, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(weights, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def take(seconds, owner, name):
        function = getattr(owner, name)

        def slow(*given, **named):
            clock[0] += seconds
            return function(*given, **named)

        monkeypatch.setattr(owner, name, slow)

    take(100, weights, "collect_statistics")
    take(10, RULES["ties"], "survey")
    take(1, RULES["ties"], "combine")
    module = MergeModule(model, vectors_of(model))
    recipes = {
        "a": MergeRecipe("ties", 0.1),
        "pruned": MergeRecipe("ties", prune=["conv"]),
        "given": {"conv.weight": torch.zeros(3, 3, 3, 3)},
        "b": MergeRecipe("ties", 0.2),
        "averages": MergeRecipe("simple_average"),
    }
    seconds = {each.name: each.seconds for each in Weights(module, CPU, {}).of(recipes)}
    tensors = len(module.vectors.names)  # pruned, one less; but the tied one, unless it is held, once for each name
    expected = {"a": 10 + tensors, "b": 10 + tensors, "pruned": 110 + tensors, "given": 0, "averages": 0}
    assert seconds == expected
    assert list(seconds) == ["a", "b", "pruned", "given", "averages"]
