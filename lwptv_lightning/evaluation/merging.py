"""The one place where what an evaluation needs is merged: what is asked for, whether it fits, and the merge itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lwptv_lightning.checkpoints import some_of
from lwptv_lightning.functional import plain_module, plain_state
from lwptv_lightning.layers import Layers
from lwptv_lightning.merging import Merge, MergePlan, install_plan_, installable
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import nearest
from lwptv_lightning.task_vectors import TaskVectors, tied_in


def require_fit(model: nn.Module, vectors: TaskVectors) -> None:
    """Raise `ValueError` where merging would not set a tensor of a model, but for the tasks' own classifiers."""
    own = {name: tuple(tensor.shape) for name, tensor in plain_state(model).items()}
    label = type(plain_module(model)).__name__
    absent = [name for name in vectors.shared_names if name not in own]
    if absent:
        raise ValueError(
            f"{label} has no tensor {some_of(absent)}{nearest(absent[0], own)} Expected the architecture that the "
            "checkpoints are of; tensors that are not to be merged go into exclude=(...)."
        )
    for name in vectors.shared_names:
        if own[name] != vectors.headers[name].shape:
            raise ValueError(f"{label}: {name!r} has shape {own[name]}, the base {vectors.headers[name].shape}.")
    classifiers = tuple(f"{path}." for path in vectors.classifiers)
    set_by_ties = {name for group in tied_in(model, own) if vectors.headers.keys() & group for name in group}
    known = vectors.headers.keys() | set_by_ties
    unset = [name for name in own if name not in known and not name.startswith(classifiers)]
    if unset:
        raise ValueError(
            f"{label} has tensors that the base has not and that would stay random: {some_of(unset)} Build it without "
            "them (timm: num_classes=0), or add them to the base checkpoint."
        )


def merge_model_(
    model: nn.Module,
    vectors: TaskVectors,
    recipe: MergeRecipe,
    layers: Callable[[str], Layers],
    options: Mapping[str, Any],
    *,
    whole: bool = False,
) -> MergePlan:
    """Merge into a model, and return what was merged.

    ``layers`` gives the model's layers of a granularity, where these are needed. A ``whole`` model is the base where
    nothing is merged, but for classifiers of another shape; otherwise it keeps what base and tasks do not share.
    """
    merge, execution = Merge.of(vectors.knowing(model), recipe, None, options)
    if merge.needs_layers:
        merge = replace(merge, layers=layers(merge.recipe.granularity))
    plan = merge.plan(execution)
    install_plan_(model, plan, installable(model, vectors) if whole else None)
    return plan
