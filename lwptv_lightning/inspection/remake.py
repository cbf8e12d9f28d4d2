"""A merge made again as its file says: from the recipe, the mask and the layers that stand in the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lwptv_lightning.checkpoints import CheckpointError, Provenance
from lwptv_lightning.engine import DataStatistics, Execution
from lwptv_lightning.layers import Layer, Layers, layers_from_names, trace_layers
from lwptv_lightning.merging import Merge, MergePlan
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import natural_order, nearest, shown
from lwptv_lightning.saliency import LayerMask, merged_layers
from lwptv_lightning.task_vectors import TaskVectors, with_roles


def plan_again(
    source: str,
    made: Provenance,
    vectors: TaskVectors,
    data: DataStatistics | None = None,
    model: nn.Module | None = None,
    execution: Execution | None = None,
) -> MergePlan:
    """Return the plan of the merge that a file says it holds.

    Args:
        source: The file's name, for messages.
        made: What the file says of itself.
        vectors: Task vectors of the same base and tasks, under the same names.
        data: What was collected on data, where the rule needs it.
        model: Tells the layers where a file of an earlier version does not.
        execution: Where and how to compute.

    Raises:
        CheckpointError: The file does not say enough, or names layers or tensors that the base has not.
        ValueError: The recipe cannot be read, or its rule needs data that are not given.
    """
    if made.recipe is None or not made.tasks:
        what = "recipe" if made.recipe is None else "tasks"
        raise CheckpointError(f"{source}: it does not say its {what}; expected a file of save_merged.")
    try:
        recipe = MergeRecipe.from_dict(made.recipe)
        if made.scale is not None:
            recipe = recipe.replace(scale=made.scale)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: its recipe cannot be used here: {error}") from error
    vectors = vectors.select(task for task in made.tasks if task in vectors.tasks)
    if made.roles is not None:
        vectors = with_roles(vectors, **made.roles)
    layers = _layers_of(made, recipe, vectors, model)
    merge = Merge(vectors, recipe, layers, data=data)
    if made.mask is not None:
        merge = replace(merge, mask=_mask_of(source, made.mask, recipe, vectors, layers))
    elif recipe.prunes_layers:
        raise CheckpointError(f"{source}: its recipe prunes layers, and no mask stands in its metadata.")
    return merge.plan(execution)


def _layers_of(made: Provenance, recipe: MergeRecipe, vectors: TaskVectors, model: nn.Module | None) -> Layers | None:
    if made.layers is not None:
        return Layers(tuple(Layer(name, tuple(names)) for name, names in made.layers.items()), recipe.granularity)
    if model is None or made.mask is None:
        return None
    kept = {name for names in made.mask.values() for name in names}
    by_name = layers_from_names(natural_order(vectors.names), recipe.granularity)
    return None if kept <= set(by_name.names) else trace_layers(model, recipe.granularity)


def _mask_of(
    source: str, kept: Mapping[str, list[str]], recipe: MergeRecipe, vectors: TaskVectors, layers: Layers | None
) -> LayerMask:
    if layers is None:
        layers = layers_from_names(natural_order(vectors.names), recipe.granularity)
    names = merged_layers(vectors, layers).names
    for task in vectors.tasks:
        if task not in kept:
            raise CheckpointError(f"{source}: its mask says nothing of task {shown(task)}.{nearest(task, kept)}")
        if unknown := [name for name in kept[task] if name not in names]:
            raise CheckpointError(
                f"{source}: its mask keeps the layer {shown(unknown[0])}, which the base has not."
                f"{nearest(unknown[0], names)} Layers that a model told need that model."
            )
    rows: list[Any] = [[name in set(kept[task]) for name in names] for task in vectors.tasks]
    return LayerMask(vectors.tasks, names, torch.tensor(rows, dtype=torch.bool).reshape(len(rows), len(names)))
