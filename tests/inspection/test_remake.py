"""A plan is made again from what a file says of itself."""

from dataclasses import replace

import pytest
import torch

from lwptv_lightning import Merge, MergeRecipe, layers_from_names
from lwptv_lightning.checkpoints import CheckpointError
from lwptv_lightning.inspection.remake import plan_again


def tensors_of(plan):
    return dict(plan.tensors())


def same(plan, other):
    ours, theirs = tensors_of(plan), tensors_of(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("layers", [None, "own"])
def test_the_mask_and_the_layers_are_those_of_the_file(layers, vectors):
    own = None if layers is None else layers_from_names(tuple(reversed(vectors.names)))
    plan = Merge(vectors, MergeRecipe("ties", score="random", ratio=0.5, seed=4), own).plan()
    made = plan.provenance()
    again = plan_again("m", made, vectors)
    assert same(plan, again)
    assert (made.layers is None) == (layers is None)
    everything = replace(made, mask={task: list(plan.pruning.layers.names) for task in vectors.tasks})
    assert not same(plan, plan_again("m", everything, vectors))


def test_the_scale_is_the_one_in_force_then(vectors):
    plan = Merge(vectors, MergeRecipe("task_arithmetic")).plan()
    assert plan.provenance().recipe["scale"] is None
    assert plan_again("m", replace(plan.provenance(), scale=0.7), vectors).recipe.effective_scale == 0.7


def test_what_the_file_does_not_say_is_told(vectors):
    made = Merge(vectors, MergeRecipe(ratio=0.5)).plan().provenance()
    with pytest.raises(CheckpointError, match="m: it does not say its recipe"):
        plan_again("m", replace(made, recipe=None), vectors)
    with pytest.raises(CheckpointError, match="m: it does not say its tasks"):
        plan_again("m", replace(made, tasks={}), vectors)
    with pytest.raises(CheckpointError, match="m: its recipe prunes layers, and no mask"):
        plan_again("m", replace(made, mask=None), vectors)
    with pytest.raises(CheckpointError, match="its mask says nothing of task 'c'"):
        plan_again("m", replace(made, mask={"a": [], "b": []}), vectors)
    with pytest.raises(CheckpointError, match=r"keeps the layer 'head2', .* Did you mean 'head'\?"):
        plan_again("m", replace(made, mask={task: ["head2"] for task in "abc"}), vectors)


def test_a_model_tells_the_layers_where_an_earlier_version_did_not(vit, vit_vectors):
    from lwptv_lightning import trace_layers

    layers = trace_layers(vit, "block")
    plan = Merge(vit_vectors, MergeRecipe(ratio=0.5, granularity="block"), layers).plan()
    made = replace(plan.provenance(), layers=None)
    assert same(plan, plan_again("m", made, vit_vectors, model=vit))
