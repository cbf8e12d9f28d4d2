"""Which layers are pruned: what a score, a mask or given scores say of it."""

import pytest
import torch

from lwptv_lightning import Execution, MergeRecipe, layers_from_names, plan_pruning
from lwptv_lightning.merging import Merge
from lwptv_lightning.merging.prune import plan_layers, prune_layers


def test_layers_come_from_the_names_in_their_natural_order(vectors):
    layers = plan_layers(vectors, MergeRecipe(granularity="tensor"), None)
    assert layers.names == tuple(sorted(vectors.names))


def test_layers_of_another_granularity_are_refused(vectors):
    layers = layers_from_names(vectors.names, "tensor")
    with pytest.raises(ValueError, match="layers are of granularity 'tensor', the recipe's is 'module'"):
        plan_layers(vectors, MergeRecipe(), layers)


def test_given_scores_take_the_place_of_the_recipes(vectors):
    own = plan_pruning(vectors, MergeRecipe(ratio=0.5))
    turned = type(own.scores)(own.scores.tasks, own.scores.layers, own.scores.numel, -own.scores.values)
    found = prune_layers(Merge(vectors, MergeRecipe(ratio=0.5), scores=turned), Execution())
    assert torch.equal(found.scores.values, -own.scores.values)
    assert found.mask != own.mask


def test_scores_of_other_tasks_are_refused(vectors):
    own = plan_pruning(vectors, MergeRecipe(ratio=0.5)).scores
    with pytest.raises(ValueError, match="must be of the tasks"):
        plan_pruning(vectors.select(["b", "a"]), MergeRecipe(ratio=0.5), scores=own)
