"""The torch.fx transform: a module becomes a GraphModule with merged weights and annotated nodes."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import nn
from torch.fx import GraphModule

from lwptv_lightning.functional import plain_module, plain_state, uncompile_
from lwptv_lightning.layers import Layers, trace, trace_layers
from lwptv_lightning.merging.install import install_plan_, installable, require_fit
from lwptv_lightning.merging.merge import Merge, MergeOptions
from lwptv_lightning.merging.prune import PruningPlan, prune_layers
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import require_kind
from lwptv_lightning.task_vectors import TaskVectors


def merge_transform(
    model: nn.Module,
    vectors: TaskVectors,
    recipe: MergeRecipe | str | Mapping[str, Any],
    device: torch.device | str | None = None,
    **options: Unpack[MergeOptions],
) -> GraphModule:
    """Trace a model, merge weights into the graph and note on its nodes what was pruned.

    Args:
        model: The module that the checkpoints are of; it is copied and stays as it is.
        vectors: The task vectors.
        recipe: Rule, scale and pruning; the name of a rule will do.
        device: Where to merge.
        options: Those of `MergeOptions`.

    Returns:
        A graph module with the merged weights, in evaluation mode. Each node that uses merged tensors carries
        ``node.meta["lwptv"]``, a list with one entry for each of their layers: ``{"layer": name, "score": {task:
        number}, "kept": {task: bool}}``.

    Raises:
        TracingError: The model cannot be traced.
        ValueError: Model, layers and task vectors do not fit; or the model has tensors that would stay as they are
            initialised, such as a classifier that is not the base's.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> base = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
        >>> vectors = TaskVectors.open(base, {"a": {name: tensor + 1 for name, tensor in base.items()}})
        >>> graph = merge_transform(model, vectors, MergeRecipe(ratio=0.5))
        >>> [entry["kept"] for node in graph.graph.nodes for entry in node.meta.get("lwptv", [])]
        [{'a': False}, {'a': True}]
    """
    require_kind("model", model, nn.Module, "a module")
    require_kind("vectors", vectors, TaskVectors, "TaskVectors")
    vectors = vectors.knowing(model)
    if plain_state(model).keys() >= set(vectors.shared_names):
        require_fit(model, vectors, with_heads=False)
    asked, execution = Merge.of(vectors, recipe, None, {"device": device, **options}, merge_transform)
    asked = replace(asked, layers=trace_layers(model, asked.recipe.granularity))
    plan = asked.plan(execution)
    pruning = plan.pruning
    if pruning is None or pruning.scores is None:
        pruning = prune_layers(asked, execution)
    model = uncompile_(copy.deepcopy(plain_module(model)))
    install_plan_(model, plan, installable(model, vectors))
    graph = trace(model)
    by_path = _layers_by_path(pruning.layers)
    for node in graph.graph.nodes:
        indices = by_path.get(str(node.target)) if node.op in ("get_attr", "call_module") else None
        if indices:
            node.meta["lwptv"] = [_annotation(pruning, index) for index in indices]
    return graph


def _layers_by_path(layers: Layers) -> dict[str, list[int]]:
    """Return the indices of the layers that have tensors of a name, or below a module's path."""
    found: defaultdict[str, dict[int, None]] = defaultdict(dict)
    for index, layer in enumerate(layers):
        for name in layer.tensors:
            parts = name.split(".")
            for depth in range(1, len(parts) + 1):
                found[".".join(parts[:depth])][index] = None
    return {path: sorted(indices) for path, indices in found.items()}


def _annotation(plan: PruningPlan, index: int) -> dict[str, Any]:
    tasks, scores = plan.mask.tasks, [] if plan.scores is None else plan.scores.values[:, index].tolist()
    return {
        "layer": plan.layers[index].name,
        "score": dict(zip(tasks, scores, strict=True)),
        "kept": dict(zip(tasks, plan.mask.kept[:, index].tolist(), strict=True)),
    }
