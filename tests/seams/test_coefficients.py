"""Coefficients of parts act alike wherever a model is merged; the oracle is a loop in float64 over a model's layers."""

import copy

import pytest
import torch
from _helpers.models import MODELS, make_model, states_of
from _helpers.states import assert_same_bits
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import (
    MergeModule,
    MergeRecipe,
    TaskVectors,
    merge,
    merge_transform,
    model_card,
    open_checkpoint,
    save_merged,
    trace_layers,
)
from lwptv_lightning.callbacks import PruneAndMerge
from lwptv_lightning.checkpoints import Provenance
from lwptv_lightning.engine import Execution
from lwptv_lightning.inspection import verify
from lwptv_lightning.merging import Merge
from lwptv_lightning.saliency import merged_layers

SCALE = 0.8


def opened(model, dtype=torch.float32):
    """Task vectors of a model, and its layers with merged tensors."""
    base, tasks = states_of(model)
    cast = [
        {name: value.to(dtype) if value.is_floating_point() else value for name, value in each.items()}
        for each in (base, *tasks.values())
    ]
    vectors = TaskVectors.open(cast[0], dict(zip(tasks, cast[1:], strict=True)), model=model)
    return vectors, merged_layers(vectors, trace_layers(model))


def learnt(vectors, layers):
    """Numbers for each task and layer, a third of them zero, and one layer all zero."""
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(len(vectors), len(layers), generator=generator)
    values[torch.rand(values.shape, generator=generator) < 1 / 3] = 0
    values[:, 1] = 0
    return values


def recipe_of(vectors, layers, rule="task_arithmetic", **fields):
    rows = zip(vectors.tasks, learnt(vectors, layers).tolist(), strict=True)
    coefficients = {task: dict(zip(layers.names, row, strict=True)) for task, row in rows}
    return MergeRecipe(rule, SCALE, prune_on="parts", coefficients=coefficients, **fields)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_every_layer_is_the_base_and_its_share_of_each_task(kind, dtype):
    model = make_model(kind)
    vectors, layers = opened(model, dtype)
    factors = learnt(vectors, layers).double()
    merged = merge(vectors, recipe_of(vectors, layers), trace_layers(model))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    for position, layer in enumerate(layers):
        for name in layer.tensors:
            base = vectors.base(name).double()
            taus = [vectors.expert(task, name).double() - base for task in vectors.tasks]
            total = base + SCALE * sum(factors[row, position] * tau for row, tau in enumerate(taus))
            for each in vectors.names_of(name):
                torch.testing.assert_close(merged[each].double(), total, rtol=tolerance, atol=tolerance)
            if not factors[:, position].any():
                assert torch.equal(merged[name], vectors.base(name))


def test_running_statistics_are_averaged_of_the_tasks_that_are_kept():
    model = make_model("ResNet")
    vectors, layers = opened(model)
    merged = merge(vectors, recipe_of(vectors, layers), trace_layers(model))
    for name in ("bn1.running_mean", "bn2.running_var"):
        kept = learnt(vectors, layers)[:, layers.names.index(name.rpartition(".")[0])] > 0
        base = vectors.base(name).double()
        taus = [vectors.expert(task, name).double() - base for task in vectors.tasks]
        total = sum(tau for tau, keep in zip(taus, kept, strict=True) if keep) / len(vectors)
        torch.testing.assert_close(merged[name].double(), base + total, rtol=1e-6, atol=1e-6)


RULES = ["tsv_m", "ties", "magnitude", "emr"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["ResNet", "1x1 convolutions", "tied weights"])
def test_module_callback_graph_and_file_hold_the_same_bits(kind, rule, make_trainer, tmp_path):
    model = make_model(kind)
    vectors, layers = opened(model)
    recipe = recipe_of(vectors, layers, rule)
    expected = merge(vectors, recipe, trace_layers(model))
    read = MergeRecipe.from_json(recipe.to_json())
    assert_same_bits(merge(vectors, read, trace_layers(model), execution=Execution(max_memory=1 << 28)), expected)
    module = MergeModule(copy.deepcopy(model), vectors, read)
    assert_same_bits(dict(module.merge_().model.state_dict()), expected)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(images, torch.arange(4) % 3), batch_size=2)
    called = MergeModule(copy.deepcopy(model), vectors)
    trainer = make_trainer(callbacks=[PruneAndMerge(recipe=read)])
    trainer.validate(called, {"id/a": loader, "id/b": loader}, verbose=False)
    assert_same_bits(dict(called.model.state_dict()), expected)
    assert called.plan.mask == Merge(vectors, recipe, trace_layers(model)).plan().mask
    graph = merge_transform(model, vectors, read)
    assert {name: value.tolist() for name, value in graph.state_dict().items()} == {
        name: value.tolist() for name, value in expected.items()
    }
    path = module.save_merged(tmp_path / "merged.safetensors")
    said = Provenance.of(open_checkpoint(path))
    assert MergeRecipe.from_dict(said.recipe) == recipe
    kept = dict(zip(vectors.tasks, (learnt(vectors, layers) > 0).tolist(), strict=True))
    assert said.mask == {
        task: [layer for layer, keep in zip(layers.names, row, strict=True) if keep] for task, row in kept.items()
    }
    base, tasks = states_of(model)
    assert verify(path, base, tasks, model=model).passed
    assert '"coefficients": {' in model_card(said)
    by_names = save_merged(vectors, read, tmp_path / "by_names.safetensors")
    assert verify(by_names, base, tasks).passed
