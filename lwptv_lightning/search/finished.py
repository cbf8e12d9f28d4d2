"""The chosen recipe put into a model, as it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.evaluation import Measured, MergeModule
from lwptv_lightning.functional import plain_state
from lwptv_lightning.registry import own_tasks
from lwptv_lightning.search.tuned import BASE, TuneResult


def install_chosen_(module: MergeModule, found: TuneResult, **options: Any) -> MergeModule:
    """Merge the chosen recipe into a module, with the running statistics that were measured for it.

    What `MergeModule.save_merged` then writes gives the figures of the result's row, and its card tells them.

    Args:
        module: The module that `tune` was given.
        found: What it returned.
        options: Those of merging that it was given.
    """
    given = options if found.data is None or not found.recipe.rule.needs else {**options, "data": found.data}
    module.merge_(recipe=found.recipe, **given)
    _put(module, found.norms)
    figures, own = found.test.figures, own_tasks(found.test.outcomes, found.experts)
    controls = {
        BASE: figures(BASE),
        "experts": {name: figures(found.experts[task])[name] for name, task in own.items()},
    }
    if found.unpruned != found.name:
        controls["unpruned"] = figures(found.unpruned)
    module.measured = Measured.elsewhere(module, figures(found.name), controls)
    return module


@torch.no_grad()
def _put(module: MergeModule, tensors: Mapping[str, Tensor]) -> None:
    own = plain_state(module.model, keep_vars=True)
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
