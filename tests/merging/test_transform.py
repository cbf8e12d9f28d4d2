import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from lwptv_lightning import MergeRecipe, TaskVectors, install_, merge, merge_transform, plan_pruning, trace_layers


def test_output_is_that_of_the_installed_module(vit, vit_vectors):
    recipe = MergeRecipe("ties", ratio=0.5)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    vit.train()
    graph = merge_transform(vit, vit_vectors, recipe)
    assert isinstance(graph, GraphModule)
    assert vit.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())

    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    vit.eval()
    untouched = vit(images)
    install_(vit, merge(vit_vectors, recipe, trace_layers(vit)))
    assert not torch.allclose(vit(images), untouched, atol=1e-3)
    torch.testing.assert_close(graph(images), vit(images))


def test_nodes_carry_their_layers_scores_and_mask(vit, vit_vectors):
    recipe = MergeRecipe(ratio=0.5, score="rms")
    graph = merge_transform(vit, vit_vectors, recipe)
    plan = plan_pruning(vit_vectors, recipe, trace_layers(vit))
    scores, kept = dict(plan.scores), dict(plan.mask)
    annotated = [entry for node in graph.graph.nodes for entry in node.meta.get("lwptv", [])]
    assert {entry["layer"] for entry in annotated} == set(plan.layers.names)
    for entry in annotated:
        assert entry["score"] == {task: scores[task][entry["layer"]] for task in "ab"}
        assert entry["kept"] == {task: kept[task][entry["layer"]] for task in "ab"}
    qkv = next(node for node in graph.graph.nodes if node.target == "blocks.1.attn.qkv")
    assert [entry["layer"] for entry in qkv.meta["lwptv"]] == ["blocks.1.attn.qkv"]


def test_a_node_of_several_layers_lists_them_in_order():
    model = nn.Sequential(nn.Linear(2, 2))
    tuned = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    graph = merge_transform(model, TaskVectors.open(model, {"a": tuned}), MergeRecipe(granularity="tensor"))
    entries = [entry["layer"] for node in graph.graph.nodes for entry in node.meta.get("lwptv", [])]
    assert entries == ["0.weight", "0.bias"]


def test_a_model_of_another_architecture(vit_vectors):
    with pytest.raises(ValueError, match="in no layer"):
        merge_transform(nn.Linear(2, 2), vit_vectors, MergeRecipe())


def test_what_is_excluded_is_the_bases_and_not_what_the_model_was_initialised_with(vit, vit_vectors):
    state = vit.state_dict()
    partly = TaskVectors.open(
        state, {task: {name: vit_vectors.expert(task, name) for name in state} for task in "ab"}, exclude=("norm.*",)
    )
    nn.init.constant_(vit.norm.weight, 7.0)
    graph = merge_transform(vit, partly, "task_arithmetic")
    assert torch.equal(graph.state_dict()["norm.weight"], partly.base("norm.weight"))
