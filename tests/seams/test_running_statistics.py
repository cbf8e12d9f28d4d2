"""Running statistics, and other state that is no weight, leave every decision about the weights alone.

The oracle throughout: checkpoints without that state, on which everything must decide the same.
"""

import copy

import pytest
import torch
from _helpers.every_rule import statistics_for
from _helpers.models import fine_tuned_model, make_model, states_of
from _helpers.states import as_bytes
from torch import nn

from lwptv_lightning import (
    AdaMergingModule,
    CheckpointError,
    LiNeS,
    MergeModule,
    MergeRecipe,
    TaskVectors,
    collect_statistics,
    layers_from_names,
    merge,
    merge_transform,
    plan_pruning,
    score_layers,
    trace_layers,
)
from lwptv_lightning.inspection import check
from lwptv_lightning.rules import RULES
from lwptv_lightning.saliency import SCORES


def without_state(state):
    return {name: tensor for name, tensor in state.items() if "running" not in name}


@pytest.fixture(scope="module")
def states():
    base, tasks = states_of(make_model("ResNet"))
    for state in tasks.values():  # on the data of another style the statistics change far more than the weights
        for name, tensor in state.items():
            if "running" in name:
                tensor.mul_(3).add_(5)
    return base, tasks


@pytest.fixture(scope="module")
def vectors(states):
    return TaskVectors.open(*states)


@pytest.fixture(scope="module")
def bare(states):
    base, tasks = states
    return TaskVectors.open(without_state(base), {task: without_state(state) for task, state in tasks.items()})


RECIPES = {
    "plain": {},
    "half the modules": {"ratio": 0.5},
    "half the blocks, ranked over all tasks": {"ratio": 0.5, "ranking": "all", "granularity": "block"},
    "a third of the tensors, counted in parameters": {"ratio": 0.3, "count": "parameters", "granularity": "tensor"},
    "LiNeS": {"layer_scaling": LiNeS(blocks=r"conv(\d)\.")},
    "half the elements": {"elements": {"ratio": 0.5}},
}


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_weights_are_merged_as_without_them(rule, kind, vectors, bare):
    recipe = MergeRecipe(rule, **RECIPES[kind])
    data = statistics_for(rule, bare)
    found, expected = (merge(each, recipe, data=data) for each in (vectors, bare))
    assert [name for name in expected if as_bytes(found[name]) != as_bytes(expected[name])] == []


@pytest.mark.parametrize("granularity", ["block", "module", "tensor"])
@pytest.mark.parametrize("score", sorted(SCORES))
def test_they_count_in_no_score(score, granularity, vectors, bare):
    found, expected = (
        score_layers(collect_statistics(each, layers_from_names(each.names, granularity)), score)
        for each in (vectors, bare)
    )
    assert found.layers == expected.layers
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.numel, expected.numel)


def test_layers_of_the_traced_model_count_weights_alone(vectors, bare):
    layers = trace_layers(make_model("ResNet"))
    found, expected = (plan_pruning(each, MergeRecipe(ratio=0.5), layers) for each in (vectors, bare))
    assert found.mask == expected.mask
    assert torch.equal(found.scores.values, expected.scores.values)


def test_check_compares_weights_alone(states):
    base, tasks = states
    found = check(base, tasks)
    expected = check(without_state(base), {task: without_state(state) for task, state in tasks.items()})
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.norm, ours.cosines) == (theirs.norm, theirs.cosines)
        assert ours.verdict == "same base"


@pytest.mark.parametrize("granularity", ["block", "module", "tensor"])
def test_a_pruned_task_counts_with_the_bases_statistics(granularity, vectors):
    layers = trace_layers(make_model("ResNet"), granularity)
    recipe = MergeRecipe("ties", granularity=granularity, ratio=0.5)
    kept = dict(plan_pruning(vectors, recipe, layers).mask)
    assert {value for row in kept.values() for value in row.values()} == {True, False}
    merged = merge(vectors, recipe, layers)
    homes = {"tensor": "{}.weight", "module": "{}", "block": "{}"}
    for norm in ("bn1", "bn2"):
        home = homes[granularity].format(norm)
        for name in (f"{norm}.running_mean", f"{norm}.running_var"):
            base = vectors.base(name)
            counted = [vectors.expert(task, name) if kept[task][home] else base for task in "ab"]
            torch.testing.assert_close(merged[name], torch.stack(counted).mean(0))


class Unscaled(nn.Module):
    """Batch normalisation without weights of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)
        self.fc = nn.Linear(4, 2)

    def forward(self, images):
        return self.fc(self.norm(self.conv(images)).mean((2, 3)))


def test_statistics_without_weights_go_with_the_layer_before(make_trainer):
    model = Unscaled()
    tuned = {task: fine_tuned_model(model, seed) for seed, task in enumerate("ab", start=1)}
    vectors = TaskVectors.open(model, tuned)
    base, layers = vectors.base("norm.running_var"), trace_layers(model)
    assert plan_pruning(vectors, MergeRecipe(ratio=0.5), layers).scores.layers == ("conv", "fc")
    everything = merge(vectors, MergeRecipe(ratio=1.0), layers)
    assert all(torch.equal(value, vectors.base(name)) for name, value in everything.items())
    for pruned, expected in {
        "conv": base,
        "fc": torch.stack([vectors.expert(task, "norm.running_var") for task in "ab"]).mean(0),
    }.items():
        merged = merge(vectors, MergeRecipe(prune=[pruned]), layers)
        torch.testing.assert_close(merged["norm.running_var"], expected)


@pytest.mark.parametrize("elements", [0.0, 0.5, 1.0])
def test_elements_are_pruned_among_weights(elements, vectors):
    merged = merge(vectors, MergeRecipe("simple_average", elements={"ratio": elements}))
    name = "bn1.running_mean"
    mean = torch.stack([vectors.expert(task, name) for task in "ab"]).mean(0)
    torch.testing.assert_close(merged[name], vectors.base(name) if elements == 1 else mean)


def adamerging(model, states, **options):
    module = MergeModule(copy.deepcopy(model), TaskVectors.open(*states))
    learning = AdaMergingModule(module, **options)
    learning.load()
    return learning


@pytest.mark.parametrize("per", ["tensor", "task"])
@pytest.mark.parametrize("plus_plus", [False, True])
def test_adamerging_learns_on_a_model_with_batch_norm(per, plus_plus, make_trainer):
    torch.manual_seed(0)
    model = make_model("ResNet")
    learning = adamerging(model, states_of(model), per=per, plus_plus=plus_plus, lr=0.1)
    batches = {f"id/{task}": torch.utils.data.DataLoader(torch.randn(8, 3, 8, 8), batch_size=4) for task in "ab"}
    make_trainer(max_epochs=1).fit(learning, batches)
    assert not torch.allclose(learning.coefficients, torch.tensor(0.3))
    assert len(learning.coefficients) == (len(learning.merge_module.vectors.names) if per == "tensor" else 1)
    learning.load()
    expected = merge(learning.merge_module.vectors, learning.recipe())
    found = learning.merged()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].detach(), value, msg=name)


class Quantised(nn.Module):
    """Buffers of its own: a codebook that follows the data, a mask, a constant; and a weight norm."""

    def __init__(self):
        super().__init__()
        self.fc = nn.utils.parametrizations.weight_norm(nn.Linear(192, 6))
        self.out = nn.Linear(6, 4)
        self.register_buffer("codebook", torch.rand(4))
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

    def forward(self, images):
        logits = self.out(self.fc(images.flatten(1)).relu()) * self.codebook
        return logits @ (self.mask.exp())


@pytest.fixture
def quantised():
    model = Quantised()
    tuned = {}
    for seed, task in enumerate("ab", start=1):
        tuned[task] = fine_tuned_model(model, seed)
        tuned[task].codebook.copy_(torch.rand(4) + 100 * seed)
        tuned[task].mask.copy_(model.mask)
    return model, tuned


def sinks(model, tuned, recipe):
    """Whatever knows the model: task vectors opened with it, or of it, and what is given it later."""
    states = {task: expert.state_dict() for task, expert in tuned.items()}
    unknowing = TaskVectors.open(model.state_dict(), states)
    yield merge(TaskVectors.open(model.state_dict(), states, model=model), recipe)
    yield merge(TaskVectors.open(model, states), recipe)
    yield MergeModule(copy.deepcopy(model), unknowing, recipe).merge_().model.state_dict()
    yield merge_transform(model, unknowing, recipe).state_dict()


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_a_models_own_buffers_are_no_weights(ratio, quantised):
    model, tuned = quantised
    parameters = {name for name, _ in model.named_parameters()}
    base, *tasks = (
        {name: value for name, value in module.state_dict().items() if name in parameters}
        for module in (model, *tuned.values())
    )
    recipe = MergeRecipe({"name": "ties", "density": 0.5}, ratio=ratio)
    expected = merge(TaskVectors.open(base, dict(zip(tuned, tasks, strict=True))), recipe, trace_layers(model))
    mean = torch.stack([expert.codebook for expert in tuned.values()]).mean(0)
    for found in sinks(model, tuned, recipe):
        assert [name for name in expected if as_bytes(found[name]) != as_bytes(expected[name])] == []
        assert torch.equal(found["mask"], model.mask)
        if not ratio:
            torch.testing.assert_close(found["codebook"], mean)


def test_the_magnitudes_of_a_weight_norm_are_weights(quantised):
    model, tuned = quantised
    names = TaskVectors.open(model, tuned).names
    assert {"fc.parametrizations.weight.original0", "fc.parametrizations.weight.original1"} <= set(names)


def test_a_model_of_statistics_alone_still_merges():
    base = {"bn.running_mean": torch.zeros(2), "bn.running_var": torch.ones(2)}
    tasks = {
        "a": {name: value + 1 for name, value in base.items()},
        "b": {name: value + 3 for name, value in base.items()},
    }
    for rule in ("ties", "task_arithmetic", "dare_ties"):
        assert merge(TaskVectors.open(base, tasks), rule)["bn.running_var"].tolist() == [3.0, 3.0]


def test_held_and_selected_task_vectors_keep_them_apart(vectors):
    for made in (vectors.load(), vectors.select(["b", "a"]), vectors.with_task("c", make_model("ResNet"))):
        assert (made.names, made.averaged, made.copied) == (vectors.names, vectors.averaged, vectors.copied)
    assert vectors.select(["b"]).without_weights().names == ()


def test_counters_stored_as_floating_numbers_are_no_weights(states, vectors):
    """As after ``.float()`` over a state dict, or in the average of several."""

    def counting(state, count):
        return {**state, **{f"{norm}.num_batches_tracked": torch.tensor(float(count)) for norm in ("bn1", "bn2")}}

    base, tasks = states
    tuned = {task: counting(state, 1000 * number) for number, (task, state) in enumerate(tasks.items(), start=1)}
    counted = TaskVectors.open(counting(base, 7), tuned)
    assert (counted.names, counted.averaged) == (vectors.names, vectors.averaged)
    assert merge(counted, "ties")["bn1.num_batches_tracked"] == 7
    assert [found.norm for found in check(counting(base, 7), tuned)] == [found.norm for found in check(base, tasks)]


def test_a_mask_that_nothing_tells_is_refused_with_what_would():
    base = {"fc.weight": torch.ones(2, 2), "causal": torch.full((2, 2), -torch.inf).triu(1)}
    tuned = {**base, "fc.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match=r"1 NaN or infinite values in 'causal'.*exclude=.*model="):
        merge(TaskVectors.open(base, {"a": tuned}), "task_arithmetic")
    merged = merge(TaskVectors.open(base, {"a": tuned}, exclude=["causal"]), MergeRecipe(scale=1.0))
    assert torch.equal(merged["causal"], base["causal"])
    assert torch.equal(merged["fc.weight"], tuned["fc.weight"])
