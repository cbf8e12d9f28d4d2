"""`MergingCallback`: what a `MergeModule` brings along to be merged before an evaluation."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lwptv_lightning.evaluation.lightning import batch_limit, draws_kept, loaders_of, merging_together, stage_of
from lwptv_lightning.evaluation.measured import Measured
from lwptv_lightning.evaluation.module import MergeModule
from lwptv_lightning.evaluation.weights import owner_of
from lwptv_lightning.functional import plain_state


def merge_for_(trainer: Trainer, module: MergeModule, stage: str, **request: Any) -> None:
    """Check an evaluation's loaders, and merge as `MergeModule.merge_` does, on the trainer's device and processes."""
    owner = owner_of(trainer)
    with merging_together(trainer) as ranks, draws_kept():
        # Predictions need no names, but to choose a head by.
        if stage != "predict" or module.heads:
            module.prepare(loaders_of(trainer, stage), partly=False, measured=stage != "predict")
        if stage != "predict":
            module.require_logits()
        # No average of Lightning's is of a merged model.
        owner.begin(trainer, module, averaged=False)
        vectors = request.get("vectors") or module.held_vectors
        names = plain_state(module.model) if vectors is None else vectors.shared_names
        with owner.holding(module.model, names, restores=False):
            module.merge_(**{"device": trainer.strategy.root_device, "ranks": ranks, **request})


class MergingCallback(Callback):
    """Merges a `MergeModule` when an evaluation starts; having no state, it may stay with a trainer for others."""

    installs_weights = True  # by this a `MergeModule` knows that it need not bring another such callback

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Bring the callbacks that deal with weights in order."""
        owner_of(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge, unless this is the sanity check."""
        if isinstance(pl_module, MergeModule) and not trainer.sanity_checking:
            merge_for_(trainer, pl_module, stage_of(trainer))

    on_test_start = on_predict_start = on_validation_start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the figures, if they are those of all batches."""
        stage = stage_of(trainer)
        limit = trainer.limit_test_batches if stage == "test" else trainer.limit_val_batches
        if isinstance(pl_module, MergeModule) and stage != "sanity_check":
            is_whole = isinstance(limit, float) and limit == 1 and batch_limit(trainer) is None  # 1 is one batch
            pl_module.measured = Measured.of(pl_module) if is_whole else None

    on_test_end = on_validation_end
