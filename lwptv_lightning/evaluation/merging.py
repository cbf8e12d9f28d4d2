"""The one place where what an evaluation needs is merged: what is asked for, whether it fits, and the merge itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lwptv_lightning.layers import Layers
from lwptv_lightning.merging import Merge, MergePlan, Undo, exchange_plan_, install_plan_, installable
from lwptv_lightning.merging import require_fit as require_fit
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.task_vectors import TaskVectors


def merge_model_(
    model: nn.Module,
    vectors: TaskVectors,
    recipe: MergeRecipe,
    layers: Callable[[str], Layers],
    options: Mapping[str, Any],
    undo: Undo | None = None,
    *,
    whole: bool = False,
) -> MergePlan:
    """Merge into a model, with ``undo`` until that has it stay or takes it back, and return what was merged.

    ``layers`` gives the model's layers of a granularity, where these are needed. A ``whole`` model is the base where
    nothing is merged, but for classifiers of another shape; otherwise it keeps what base and tasks do not share.
    """
    merge, execution = Merge.of(vectors.knowing(model), recipe, None, options)
    if merge.needs_layers:
        merge = replace(merge, layers=layers(merge.recipe.granularity))
    plan = merge.plan(execution)
    names = installable(model, vectors) if whole else None
    if undo is None:
        install_plan_(model, plan, names)
    else:
        exchange_plan_(model, plan, names, undo)
    return plan
