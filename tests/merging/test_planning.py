"""What is pruned is read neither while a merge is planned nor while it is made."""

import pytest
import torch
from _helpers.every_rule import SHAPES, statistics_for, task_names
from _helpers.states import assert_same_bits, noise, random_state

from lwptv_lightning import LayerMask, MergeRecipe, TaskVectors
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.merging import Merge, merge_transform
from lwptv_lightning.rules import RULES

SURVEYING = {name for name, rule in RULES.items() if rule.surveys_model()} - {"fisher", "adamerging"}
"""Rules that read weights before the first tensor is made; Fisher's reads data, and AdaMerging's is of its ++ alone."""


@pytest.fixture
def counted(counting_checkpoint):
    """``counted(base, tasks)``: task vectors, and task name to the counter of its reads from now on."""

    def make(base, tasks):
        opened = {task: counting_checkpoint(state) for task, state in tasks.items()}
        vectors = TaskVectors.open(base, {task: checkpoint for task, (checkpoint, _) in opened.items()})
        reads = {task: counter for task, (_, counter) in opened.items()}
        for counter in reads.values():
            counter.clear()
        return vectors, reads

    return make


def states(rule):
    base = random_state(0, shapes=SHAPES) | {"table": torch.arange(9)}
    tasks = {task: noise(base, seed) for seed, task in enumerate(task_names(rule), start=1)}
    return base, {task: state | {"table": base["table"] + 1} for task, state in tasks.items()}


def half_of(vectors):
    layers = layers_from_names(vectors.names, "tensor")
    kept = (torch.arange(len(vectors) * len(layers)) * 7 % 10 < 5).reshape(len(vectors), -1)
    kept[:, 2] = False
    return layers, LayerMask(vectors.tasks, layers.names, kept)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.filterwarnings("ignore:task .* whose values are kept")
def test_a_task_is_read_where_it_is_kept_alone(rule, counted):
    vectors, reads = counted(*states(rule))
    layers, mask = half_of(vectors)
    recipe = MergeRecipe(rule, granularity="tensor")
    plan = Merge(vectors, recipe, layers, mask=mask, data=statistics_for(rule, vectors)).plan()
    kept = {task: {name for name, keep in row.items() if keep} for task, row in mask}
    assert any(reads.values()) == (rule in SURVEYING)
    for task, names in kept.items():
        assert reads[task].keys() <= names
    dict(plan.tensors())
    for task, names in kept.items():
        assert reads[task].keys() == names | {"table"}


@pytest.mark.parametrize("rule", ["ties", "pcb"])
def test_the_sample_that_a_survey_begins_with_reads_no_pruned_task(rule, counted):
    base = {"v": torch.randn(1100, 1000), "w": torch.randn(1000, 1100)}  # enough for thresholds to be sampled
    vectors, reads = counted(base, {task: noise(base, seed) for seed, task in enumerate("ab")})
    layers = layers_from_names(vectors.names, "tensor")
    mask = LayerMask(vectors.tasks, layers.names, torch.tensor([[True, False], [False, True]]))
    plan = Merge(vectors, MergeRecipe(rule, granularity="tensor"), mask=mask).plan()
    dict(plan.tensors())
    assert {task: set(counter) for task, counter in reads.items()} == {"a": {"v"}, "b": {"w"}}


ALL_PRUNED = {
    "ratio": {"ratio": 1.0},
    "patterns": {"prune": ["*"]},
    "parameters over all tasks": {"ratio": 1.0, "ranking": "all", "count": "parameters"},
    "elements": {"elements": {"ratio": 1.0}},
}


@pytest.mark.parametrize("pruned", ALL_PRUNED)
@pytest.mark.parametrize("rule", RULES)
def test_where_all_is_pruned_no_expert_is_read(rule, pruned, counted):
    base, tasks = states(rule)
    vectors, reads = counted(base, tasks)
    on = ["task_vectors", "parts"] if RULES[rule].has_parts() and pruned != "elements" else ["task_vectors"]
    for prune_on in on:
        recipe = MergeRecipe(rule, prune_on=prune_on, **ALL_PRUNED[pruned])
        assert_same_bits(dict(Merge(vectors, recipe, data=statistics_for(rule, vectors)).plan().tensors()), base)
    assert not any(reads.values())


def test_a_layer_that_is_kept_whatever_the_ratio_is_read_and_scored(counted):
    vectors, reads = counted(*states("ties"))
    plan = Merge(vectors, MergeRecipe("ties", ratio=1.0, keep=["scale"])).plan()
    assert plan.pruning.scores is not None
    assert plan.mask.kept.sum() == len(vectors)
    assert all("scale" in counter for counter in reads.values())


def test_a_graph_whose_layers_are_all_pruned_has_their_scores(vit, vit_vectors):
    graph = merge_transform(vit, vit_vectors, MergeRecipe(ratio=1.0))
    (entry, *_) = next(node.meta["lwptv"] for node in graph.graph.nodes if node.meta.get("lwptv"))
    assert set(entry["kept"].values()) == {False}
    assert all(score > 0 for score in entry["score"].values())
