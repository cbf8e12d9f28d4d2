"""A tied weight is one layer, one draw and one result under all its names.

The oracle throughout: the same checkpoints with the weight under its first name alone.
"""

import copy

import pytest
import torch
from _helpers.every_rule import statistics_for
from _helpers.models import make_model, states_of
from _helpers.states import as_bytes
from torch import nn

from lwptv_lightning import (
    AdaMergingModule,
    CheckpointError,
    MergeModule,
    MergeRecipe,
    TaskVectors,
    merge,
    merge_transform,
    open_checkpoint,
    plan_pruning,
    save_merged,
    trace_layers,
)
from lwptv_lightning.inspection import check
from lwptv_lightning.rules import RULES

FIRST, OTHER = "decoder.weight", "encoder.weight"


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.fixture(scope="module")
def states():
    return states_of(make_model("tied weights"))


@pytest.fixture(scope="module")
def vectors(states):
    return TaskVectors.open(*states)


@pytest.fixture(scope="module")
def single(states):
    base, tasks = states
    return TaskVectors.open(without(base, OTHER), {task: without(state, OTHER) for task, state in tasks.items()})


RECIPES = {
    "plain": {},
    "half the modules": {"ratio": 0.5},
    "half the parameters, ranked over all tasks": {"ratio": 0.5, "ranking": "all", "count": "parameters"},
    "random tensors": {"ratio": 0.5, "score": "random", "granularity": "tensor"},
    "a coefficient for its layer": {"layer_scaling": {"decoder": 0.3}},
    "half the elements": {"elements": {"ratio": 0.5}},
    "float64": {"dtype": "float64"},
}


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_makes_one_result_of_it(rule, kind, vectors, single):
    recipe = MergeRecipe(rule, **RECIPES[kind])
    data = statistics_for(rule, single)
    found, expected = (merge(each, recipe, data=data) for each in (vectors, single))
    assert [name for name in expected if as_bytes(found[name]) != as_bytes(expected[name])] == []
    assert as_bytes(found[OTHER]) == as_bytes(found[FIRST])


def test_it_is_one_layer_and_one_entry_of_every_table(vectors, single):
    for granularity in ("block", "module", "tensor"):
        recipe = MergeRecipe(ratio=0.5, granularity=granularity)
        found, expected = (plan_pruning(each, recipe) for each in (vectors, single))
        assert found.mask == expected.mask
        assert torch.equal(found.scores.values, expected.scores.values)
        traced = plan_pruning(vectors, recipe, trace_layers(make_model("tied weights"), granularity))
        assert sum(traced.layers.names.count(name) for name in (FIRST, OTHER)) == (granularity == "tensor")
        assert traced.scores.numel.sum() == expected.scores.numel.sum()


@pytest.mark.parametrize("given", [FIRST, OTHER, "both"])
@pytest.mark.parametrize("rule", ["regmean", "fisher"])
def test_statistics_count_under_whichever_name_they_were_collected(rule, given, vectors, single):
    data = statistics_for(rule, single)
    renamed = {task: dict(tensors) for task, tensors in data.items()}
    for tensors in renamed.values():
        value = tensors.pop(FIRST)
        tensors |= dict.fromkeys((FIRST, OTHER) if given == "both" else (given,), value)
    found, expected = merge(vectors, rule, data=renamed), merge(single, rule, data=data)
    assert [name for name in expected if as_bytes(found[name]) != as_bytes(expected[name])] == []


def test_inputs_of_both_places_count_in_regmean(vectors, single):
    places = {task: [torch.eye(4) * scale, torch.eye(4) + scale] for scale, task in enumerate("ab", start=1)}
    apart = {task: {FIRST: first, OTHER: second} for task, (first, second) in places.items()}
    together = {task: {FIRST: first + second} for task, (first, second) in places.items()}
    found, expected = merge(vectors, "regmean", data=apart), merge(single, "regmean", data=together)
    assert as_bytes(found[FIRST]) == as_bytes(found[OTHER]) == as_bytes(expected[FIRST])


@pytest.mark.parametrize("pattern", [OTHER, "enc*.weight"])
def test_patterns_find_the_layer_by_any_name(pattern, vectors, single):
    base = {"ratio": 0.4, "granularity": "tensor"}
    for field in ("keep", "prune"):
        found = plan_pruning(vectors, MergeRecipe(**base, **{field: [pattern]}))
        assert found.mask == plan_pruning(single, MergeRecipe(**base, **{field: [FIRST]})).mask
    with pytest.raises(KeyError, match="none_such"):
        plan_pruning(vectors, MergeRecipe(ratio=0.4, keep=["none_such"]))


def test_coefficients_find_the_layer_by_any_name(vectors, single):
    found = merge(vectors, MergeRecipe(granularity="tensor", layer_scaling={OTHER: 0.2}))
    expected = merge(single, MergeRecipe(granularity="tensor", layer_scaling={FIRST: 0.2}))
    assert as_bytes(found[OTHER]) == as_bytes(found[FIRST]) == as_bytes(expected[FIRST])


def test_rules_that_are_told_tensors_by_name_know_all_names(vectors, single):
    by_name = {
        "wudi": ("include", [OTHER], [FIRST]),
        "adamerging": ("coefficients", {OTHER: [0.7, 0.1]}, {FIRST: [0.7, 0.1]}),
    }
    for rule, (field, asked, expected) in by_name.items():
        found = merge(vectors, MergeRecipe({"name": rule, field: asked}))
        wanted = merge(single, MergeRecipe({"name": rule, field: expected}))
        assert as_bytes(found[OTHER]) == as_bytes(found[FIRST]) == as_bytes(wanted[FIRST])
        assert as_bytes(found[FIRST]) != as_bytes(vectors.base(FIRST))


@pytest.mark.parametrize("pattern", [FIRST, OTHER, "*coder.weight"])
@pytest.mark.parametrize("known", [False, True], ids=["told by values", "told by the model"])
def test_it_is_excluded_by_any_name(pattern, known, states):
    base, tasks = states
    model = make_model("tied weights")
    vectors = TaskVectors.open(base, tasks, exclude=[pattern], model=model if known else None)
    module = MergeModule(copy.deepcopy(model), vectors, "task_arithmetic").merge_()
    for merged in (merge(vectors, "task_arithmetic"), module.model.state_dict()):
        assert as_bytes(merged[FIRST]) == as_bytes(merged[OTHER]) == as_bytes(base[FIRST])
    assert not {FIRST, OTHER} & set(vectors.names)
    found, expected = (check(base, tasks, exclude=patterns) for patterns in ([pattern], [FIRST, OTHER]))
    assert [(each.norm, each.cosines) for each in found] == [(each.norm, each.cosines) for each in expected]


def test_a_name_that_tasks_lack_does_not_exclude_it_and_a_tied_model_refuses_that(states):
    """As the head of a language model that encoders do not have: their embeddings are merged."""
    base, tasks = states
    encoders = {task: without(state, OTHER) for task, state in tasks.items()}
    vectors = TaskVectors.open(base, encoders, exclude=[OTHER])
    assert FIRST in vectors.names
    expected = f"'{OTHER}' is excluded and '{FIRST}' is to be merged, but they are one tensor"
    for use in (
        lambda: MergeModule(make_model("tied weights"), vectors),
        lambda: merge_transform(make_model("tied weights"), vectors, MergeRecipe()),
        lambda: TaskVectors.open(base, encoders, exclude=[OTHER], model=make_model("tied weights")),
    ):
        with pytest.raises(CheckpointError, match=expected):
            use()


def test_check_counts_it_once(states):
    base, tasks = states
    expected = check(without(base, OTHER), {task: without(state, OTHER) for task, state in tasks.items()})
    for model in (None, make_model("tied weights")):
        for found, wanted in zip(check(base, tasks, model=model), expected, strict=True):
            assert (found.norm, found.cosines, found.verdict) == (wanted.norm, wanted.cosines, wanted.verdict)


def test_a_module_and_a_graph_stay_tied(vectors):
    model = make_model("tied weights")
    module = MergeModule(copy.deepcopy(model), vectors, MergeRecipe("dare", ratio=0.5)).merge_()
    assert module.model.encoder.weight is module.model.decoder.weight
    graph = merge_transform(model, vectors, MergeRecipe("dare", ratio=0.5))
    for made in (module.model, graph):
        found = made.state_dict()
        expected = merge(vectors, MergeRecipe("dare", ratio=0.5), trace_layers(model))
        assert {name for name in expected if as_bytes(found[name]) != as_bytes(expected[name])} == set()


def test_a_file_holds_it_under_all_names(vectors, tmp_path):
    saved = open_checkpoint(save_merged(vectors, "dare", tmp_path / "merged.safetensors"))
    assert set(saved.names) == set(vectors.headers)
    assert as_bytes(saved.read(FIRST)) == as_bytes(saved.read(OTHER))


def test_a_model_told_later_knows_its_ties():
    """Too few elements, or too few different ones, for values to tell."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    base, tuned = ({f"{place}.weight": torch.eye(2) * scale for place in "01"} for scale in (1.0, 3.0))
    vectors = TaskVectors.open(base, {"a": tuned})
    assert vectors.names == ("0.weight", "1.weight")
    module = MergeModule(copy.deepcopy(model), vectors, MergeRecipe("dare"))
    assert module.vectors.names == ("0.weight",)
    module.merge_()
    assert as_bytes(module.model[0].weight) == as_bytes(merge(vectors, "dare")["0.weight"])


def test_weights_that_an_expert_untied_are_refused_for_a_tied_model(states):
    base, tasks = states
    apart = {**tasks, "b": {**tasks["b"], OTHER: tasks["b"][OTHER] + 1}}
    vectors = TaskVectors.open(base, apart)
    assert vectors.tied == {}
    for use in (
        lambda: MergeModule(make_model("tied weights"), vectors),
        lambda: merge_transform(make_model("tied weights"), vectors, MergeRecipe()),
        lambda: TaskVectors.open(base, apart, model=make_model("tied weights")),
    ):
        with pytest.raises(CheckpointError, match=f"'{OTHER}' and '{FIRST}'|'{FIRST}' and '{OTHER}'"):
            use()


@pytest.mark.parametrize("left_out", [FIRST, OTHER])
def test_a_module_takes_checkpoints_that_hold_it_once(left_out, states, single):
    base, tasks = states
    vectors = TaskVectors.open(
        without(base, left_out), {task: without(state, left_out) for task, state in tasks.items()}
    )
    module = MergeModule(make_model("tied weights"), vectors, "task_arithmetic").merge_()
    assert as_bytes(module.model.decoder.weight) == as_bytes(merge(single, "task_arithmetic")[FIRST])


@pytest.mark.parametrize("per", ["tensor", "task"])
def test_adamerging_learns_one_coefficient_for_it(per, states, make_trainer):
    torch.manual_seed(0)
    module = MergeModule(make_model("tied weights"), TaskVectors.open(*states))
    learning = AdaMergingModule(module, per=per, lr=0.1)
    loaders = {f"id/{task}": torch.utils.data.DataLoader(torch.randn(4, 3, 8, 8), batch_size=4) for task in "ab"}
    make_trainer(max_epochs=2).fit(learning, loaders)
    assert not torch.allclose(learning.coefficients, torch.tensor(0.3))
    merged, expected = learning.merged(), merge(module.vectors, learning.recipe())
    for name, value in expected.items():
        torch.testing.assert_close(merged[name].detach(), value)
