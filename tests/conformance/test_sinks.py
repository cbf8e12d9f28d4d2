"""Whatever a merge is poured into, the same recipe gives the same bits.

A new sink is one function in `SINKS`: from a case to the tensors that it made, by name. What runs under a trainer is
asked which weights the model computes with, in the forward pass itself.
"""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from _helpers.every_rule import statistics_for
from _helpers.models import make_model, vectors_of_model
from _helpers.states import as_bytes
from lightning.pytorch import LightningModule
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import (
    Execution,
    LayerMask,
    MergeModule,
    MergeRecipe,
    PruneAndMerge,
    TaskVectors,
    collect_statistics,
    merge,
    open_checkpoint,
    plan_pruning,
    save_merged,
)
from lwptv_lightning.cli import main
from lwptv_lightning.layers import trace_layers
from lwptv_lightning.merging import Merge, merge_transform, write_data_statistics
from lwptv_lightning.search import sweep

RECIPES = {
    "task arithmetic": {"rule": "task_arithmetic"},
    "TIES, half the layers pruned": {"rule": "ties", "ratio": 0.5},
    "DARE": {"rule": "dare"},
    "Fisher": {"rule": "fisher"},
    "Fisher, half the layers pruned": {"rule": "fisher", "ratio": 0.5, "score": "rms"},
    "RegMean": {"rule": "regmean"},
    "EMR for one task": {"rule": "emr", "task": "a"},
    "float64": {"rule": "weighted_average", "scale": 1 / 3, "dtype": "float64"},
    "elements pruned": {"rule": "simple_average", "elements": {"ratio": 0.5}},
}


@dataclass(frozen=True)
class Case:
    """What is merged, and where files may be written."""

    model: torch.nn.Module
    vectors: TaskVectors
    recipe: MergeRecipe
    data: Any
    folder: Path
    make_trainer: Any
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self):
        return dict(self.given) if self.data is None else {"data": self.data, **self.given}

    @property
    def layers(self):
        return trace_layers(self.model, self.recipe.granularity)


def loader():
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.tensor([0, 1, 2])), batch_size=3)


def watch(model):
    """Return a list that gets the weights with which each forward pass of a model computes."""
    seen = []

    def look(module, inputs):
        seen.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})

    # On the first layer, as a head on the features goes without the model's own forward.
    first_layer = next(module for module in model.modules() if not list(module.children()))
    first_layer.register_forward_pre_hook(look)
    return seen


def by_plan(case):
    return dict(Merge(case.vectors, case.recipe, case.layers, data=case.data).plan().tensors())


def by_pieces(case):
    plan = Merge(case.vectors, case.recipe, case.layers, data=case.data).plan()
    found = {}
    for name, pieces in groupby(plan.pieces(), key=lambda piece: piece[0]):
        header = case.vectors.headers[name]
        found[name] = torch.cat([values.clone() for _, _, values in pieces]).reshape(header.shape)
    return found


def saved(case, **options):
    path, options = case.folder / "out" / "merged.safetensors", {"keep_classifier": True, **options, **case.options}
    path = save_merged(case.vectors, case.recipe, path, case.layers, **options)
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.read(name) for name in checkpoint.names}


def by_file(case):
    return saved(case)


def by_shards(case):
    tensors = saved(case, max_shard_size=100)
    assert len(list((case.folder / "out").iterdir())) > 3
    return tensors


def by_graph(case):
    return merge_transform(case.model, case.vectors, case.recipe, **case.options).state_dict()


def by_module(case):
    return MergeModule(case.model, case.vectors, case.recipe, **case.options).merge_().model.state_dict()


def by_file_of_a_module(case):
    module = MergeModule(case.model, case.vectors, case.recipe, **case.options)
    checkpoint = open_checkpoint(module.save_merged(case.folder / "module.safetensors", keep_classifier=True))
    return {name: checkpoint.read(name) for name in checkpoint.names}


def by_validation(case):
    seen = watch(case.model)
    module = MergeModule(case.model, case.vectors, case.recipe, **case.options)
    case.make_trainer().validate(module, {"id/a": loader()}, verbose=False)
    (weights,) = seen
    return weights


class Foreign(LightningModule):
    """A module of someone else's."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])


def by_callback(case):
    seen = watch(case.model)
    callback = PruneAndMerge(case.vectors, case.recipe, **case.options)
    case.make_trainer(callbacks=[callback]).validate(Foreign(case.model), loader(), verbose=False)
    (weights,) = seen
    return weights


def by_sweep(case):
    seen = watch(case.model)
    module = MergeModule(case.model, case.vectors)
    sweep(case.make_trainer(), module, {"it": case.recipe}, {"id/a": loader()}, **case.options)
    (weights,) = seen
    return weights


def by_command_line(case):
    names = ("base", *case.vectors.tasks)
    for name in names:
        read = case.vectors.base if name == "base" else partial(case.vectors.expert, name)
        state = {tensor: read(tensor).clone() for tensor in case.vectors.headers}  # classifiers of their own included
        save_file(state, case.folder / f"{name}.safetensors")
    (case.folder / "recipe.json").write_text(case.recipe.to_json())
    base, *tasks = (str(case.folder / f"{name}.safetensors") for name in names)
    out = case.folder / "cli.safetensors"
    arguments = [f"{task}={path}" for task, path in zip(case.vectors.tasks, tasks, strict=True)]
    arguments += ["--recipe", str(case.folder / "recipe.json"), "--out", str(out)]
    for path in case.vectors.classifiers:
        arguments += ["--exclude", f"{path}.*"]
    if case.data is not None:
        arguments += ["--data-statistics", str(write_data_statistics(case.data, case.folder / "data.safetensors"))]
    main(["merge", base, *arguments])
    checkpoint = open_checkpoint(out)
    return {name: checkpoint.read(name) for name in checkpoint.names}


SINKS = {
    "plan's tensors": by_plan,
    "plan's pieces": by_pieces,
    "file": by_file,
    "shards": by_shards,
    "graph": by_graph,
    "module": by_module,
    "module's file": by_file_of_a_module,
    "validation": by_validation,
    "callback on a foreign module": by_callback,
    "sweep": by_sweep,
    "command line": by_command_line,
}


SOME = ("task arithmetic", "TIES, half the layers pruned", "Fisher", "RegMean")
CASES = [
    *((kind, recipe) for kind in ("ViT", "tied weights") for recipe in RECIPES),
    *((kind, recipe) for kind in ("ResNet", "own classifiers", "1x1 convolutions") for recipe in SOME),
]


def sees_less(kind, recipe, sink):
    """Tell whether a sink knows no model, only names, and so puts a tied weight into the layer of another name."""
    return sink == "command line" and kind == "tied weights" and "pruned" in recipe


COMPARED = [(*case, sink) for case in CASES for sink in SINKS if not sees_less(*case, sink)]


@cache
def inputs_of(kind):
    model = make_model(kind)
    return model, vectors_of_model(model)


def data_for(recipe, vectors):
    return statistics_for(recipe.rule.name, vectors)


@cache
def expected_of(kind, recipe):
    """What `merge` returns, which all others are compared with."""
    model, vectors = inputs_of(kind)
    made = MergeRecipe.from_dict(RECIPES[recipe])
    return merge(vectors, made, trace_layers(model, made.granularity), data=data_for(made, vectors))


@pytest.mark.parametrize(("kind", "recipe", "sink"), COMPARED)
def test_every_sink_gives_the_bits_of_merge(kind, recipe, sink, tmp_path, make_trainer):
    model, vectors = inputs_of(kind)
    made = MergeRecipe.from_dict(RECIPES[recipe])
    case = Case(copy.deepcopy(model), vectors, made, data_for(made, vectors), tmp_path, make_trainer)
    found, expected = SINKS[sink](case), expected_of(kind, recipe)
    assert found.keys() == expected.keys()
    assert [name for name in expected if as_bytes(found[name]) != as_bytes(expected[name])] == []
    assert {tensor.dtype for tensor in found.values()} == {tensor.dtype for tensor in expected.values()}


PRUNING = MergeRecipe("ties", ratio=0.5)


def some_mask(model, vectors):
    layers = trace_layers(model)
    kept = torch.arange(2 * len(layers)).reshape(2, -1) % 3 > 0
    return {"mask": LayerMask(vectors.tasks, layers.names, kept)}


def turned_scores(model, vectors):
    scores = plan_pruning(vectors, PRUNING, trace_layers(model)).scores
    return {"scores": dataclasses.replace(scores, values=-scores.values)}


def other_statistics(model, vectors):
    statistics = collect_statistics(vectors, trace_layers(model))
    return {"statistics": dataclasses.replace(statistics, l1=statistics.l1.flip(1))}


OPTIONS = {
    "a mask": some_mask,
    "scores": turned_scores,
    "statistics of layers": other_statistics,
    "float64": lambda model, vectors: {"dtype": torch.float64},
    "everything at once": lambda model, vectors: {
        **turned_scores(model, vectors),
        "dtype": "float64",
        "execution": Execution(block_bytes=64, max_memory="1GB"),
    },
}
OPEN_TO_OPTIONS = [sink for sink in SINKS if sink not in ("plan's tensors", "plan's pieces", "command line")]


@pytest.mark.parametrize("sink", OPEN_TO_OPTIONS)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_sink_takes_every_option_of_merging(option, sink, tmp_path, make_trainer):
    model, vectors = inputs_of("ViT")
    given = OPTIONS[option](model, vectors)
    case = Case(copy.deepcopy(model), vectors, PRUNING, None, tmp_path, make_trainer, given)
    found, expected = SINKS[sink](case), merge(vectors, PRUNING, trace_layers(model), **given)
    assert [name for name in expected if as_bytes(found[name]) != as_bytes(expected[name])] == []


@pytest.mark.parametrize("option", ["a mask", "scores", "statistics of layers", "float64"])
def test_what_is_compared_there_is_another_model_than_without_the_option(option):
    model, vectors = inputs_of("ViT")
    plain = merge(vectors, PRUNING, trace_layers(model))
    other = merge(vectors, PRUNING, trace_layers(model), **OPTIONS[option](model, vectors))
    assert any(as_bytes(plain[name]) != as_bytes(other[name]) for name in plain)


@pytest.mark.parametrize(("kind", "recipe"), CASES)
def test_what_the_sinks_are_compared_with_is_no_copy_of_the_base(kind, recipe):
    _, vectors = inputs_of(kind)
    expected = expected_of(kind, recipe)
    assert any(as_bytes(expected[name]) != as_bytes(vectors.base(name)) for name in vectors.names)


def test_recipes_of_these_tests_give_different_models():
    results = {recipe: b"".join(map(as_bytes, expected_of("ViT", recipe).values())) for recipe in RECIPES}
    assert len(set(results.values())) == len(RECIPES)
