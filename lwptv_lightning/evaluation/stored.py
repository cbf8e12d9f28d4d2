"""What a Lightning checkpoint of a `MergeModule` holds besides its state dict and its hyper-parameters."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lwptv_lightning.checkpoints import Provenance
from lwptv_lightning.evaluation.contents import Contents
from lwptv_lightning.evaluation.lightning import trainer_of
from lwptv_lightning.merging import provenance_of
from lwptv_lightning.recipe import MergeRecipe

if TYPE_CHECKING:
    from lwptv_lightning.evaluation.module import MergeModule

_KEY = "lwptv_merge_module"


def described(module: MergeModule) -> Provenance:
    """Return what a file of a module's model as it is says of itself."""
    made, vectors = module.provenance(), module.held_vectors
    if made.recipe is None and module.installed is not None and vectors is not None:
        # The task vectors of a run in training are not kept; the module's own are.
        mask, layers = (None, None) if module.plan is None else (module.plan.mask, module.plan.layers)
        made = provenance_of(vectors, module.installed, mask, layers)
        made = replace(made, tasks={task: made.tasks.get(task) for task in module.contents.tasks})
    return module.contents.describe(made, module.model, module.heads.instead_of)


def store(module: MergeModule, checkpoint: dict[str, Any]) -> None:
    """Add to a checkpoint which merge the weights are of, and which heads belong to them."""
    recipe = None if module.installed is None else module.installed.to_dict()
    checkpoint[_KEY] = {
        "recipe": recipe,
        "metadata": described(module).to_metadata(),
        "heads": module.heads.described(module.model),
        "contents": module.contents.to_dict(),
        "metric": module.metric_choice.described(),
    }
    if recipe is not None:
        checkpoint[module.CHECKPOINT_HYPER_PARAMS_KEY]["recipe"] = recipe


def restore_(module: MergeModule, checkpoint: dict[str, Any]) -> None:
    """Make way in a module for a checkpoint's weights, as `load_from_checkpoint` asks.

    Raises:
        ValueError: The trainer's ``ckpt_path`` asks; or a head is missing that only the caller can give.
    """
    # The trainer knows of the path only when it loads; in `setup` it is None still.
    if (trainer := trainer_of(module)) is not None and trainer.ckpt_path is not None:
        raise ValueError(
            f"ckpt_path={str(trainer.ckpt_path)!r} cannot be used with a MergeModule, whose weights come from its "
            "task vectors; leave it out, or evaluate what MergeModule.load_from_checkpoint(...) returns."
        )
    if stored := checkpoint.get(_KEY):
        module.heads.restore_(stored["heads"], checkpoint["state_dict"], "heads.", module.model)
        module.installed = None if stored["recipe"] is None else MergeRecipe.from_dict(stored["recipe"])
        module.provenance = partial(Provenance.from_metadata, stored["metadata"])
        module.metric_choice.stored = stored.get("metric")
        module.contents = Contents(**stored.get("contents", {}))
