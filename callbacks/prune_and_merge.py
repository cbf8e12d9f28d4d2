"""`PruneAndMerge`: evaluate a merged model instead of the module's own weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lwptv_lightning.evaluation import (
    MergeModule,
    averages_of,
    draws_kept,
    merge_for_,
    merge_model_,
    merging_together,
    owner_of,
    stage_of,
)
from lwptv_lightning.functional import plain_state
from lwptv_lightning.layers import trace_layers
from lwptv_lightning.merging import (
    SharedOptions,
    find_backbone,
    install_,
    named_submodule,
    require_coefficients,
    require_options,
)
from lwptv_lightning.recipe import MergeRecipe, make_recipe
from lwptv_lightning.registry import (
    require_kind,
    require_known,
    require_texts,
)
from lwptv_lightning.task_vectors import TaskVectors

EVALUATIONS = ("validate", "test", "predict")


class PruneAndMerge(Callback):
    """Prune and merge task vectors on the trainer's device when an evaluation starts, or when training is done.

    On a `MergeModule` the merged weights stay. Any other LightningModule gets its own weights back bit-exactly when
    the evaluation ends or fails, so that training goes on as if nothing had happened. Lightning's sanity check before
    ``fit`` is left alone. Several processes divide the work among them, and stop together where one of them fails.

    Where Lightning's ``WeightAveraging`` is among the callbacks, its averaged weights take the place of the module's
    own: what is not merged is theirs, and they join with ``task``. Of several callbacks like this one that merge into
    the same tensors the last one in the list counts; the order is of no other consequence. Another callback that swaps
    weights must stand before this one.

    With the stage ``"fit"`` the module holds the merged weights, for good, once ``trainer.fit`` returns. All of the
    run's checkpoints hold the trained weights: merging comes after the last of them is saved. A fit that fails or is
    interrupted merges nothing.

    Args:
        vectors: The task vectors; on a `MergeModule` its own by default.
        recipe: A recipe, its fields or a rule's name; on a `MergeModule` its own by default, else ``MergeRecipe()``.
        backbone: Path of the submodule that the checkpoints are of; by default the only one with all merged tensors.
        task: The name under which a foreign module's own weights, as they are when merging starts, join the task
            vectors; by default they take no part.
        stages: When to merge: ``"validate"``, ``"test"``, ``"predict"`` (the default), or ``"fit"``, with ``task``.
        options: Those of `lwptv_lightning.merge`, such as ``statistics``; on a `MergeModule` they go before its own.

    Raises:
        UnknownNameError: No such stage.
        ValueError: The stage ``"fit"`` without ``task``; or, when a fit or an evaluation starts, no submodule fits, or
            several do.
        TypeError: Merging has no such option.

    Example:
        >>> PruneAndMerge(stages=["validate"]).stages
        ('validate',)
    """

    installs_weights = True  # by this a `MergeModule` knows that it need not bring a callback that merges

    def __init__(
        self,
        vectors: TaskVectors | None = None,
        recipe: MergeRecipe | str | Mapping[str, Any] | None = None,
        *,
        backbone: str | None = None,
        task: str | None = None,
        stages: Sequence[str] = EVALUATIONS,
        **options: Unpack[SharedOptions],
    ) -> None:
        require_options(PruneAndMerge, options)
        require_kind("vectors", vectors, TaskVectors | None, "TaskVectors")
        require_kind("backbone", backbone, str | None, "the path of a submodule")
        require_kind("task", task, str | None, "a task's name")
        for stage in require_texts("stages", stages, "a sequence of stages"):
            require_known("stage", stage, (*EVALUATIONS, "fit"))
        if "fit" in stages and task is None:
            raise ValueError("stage 'fit' merges what was trained: name its task with task='...'.")
        self.vectors = vectors
        self.recipe = None if recipe is None else make_recipe(recipe)
        self.backbone = backbone
        self.task = task
        self.stages = tuple(stages)
        self.options: dict[str, Any] = {**options}
        self.treatment: str | None = None  # of a foreign module's merge, as `MergeModule` has it of its own

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Bring the callbacks in order; let a `MergeModule` find its layers for this recipe before it is sharded."""
        owner_of(trainer)
        if isinstance(pl_module, MergeModule):
            recipe = self.recipe or pl_module.recipe
            if recipe.needs_layers or "mask" in self.options:
                pl_module.layers(recipe.granularity)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out before the training whether merging would fit."""
        merges = "fit" in self.stages or ("validate" in self.stages and trainer.enable_validation)
        if merges and not isinstance(pl_module, MergeModule):
            backbone, vectors = self._find_backbone(pl_module)
            if self.task is not None:
                vectors.require_new(self.task)
            recipe, layers = self.recipe or MergeRecipe(), partial(trace_layers, backbone)
            require_coefficients(vectors.knowing(backbone), recipe, layers, self.task)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge, unless this is the sanity check."""
        self._merge(trainer, pl_module, stage_of(trainer))

    on_test_start = on_predict_start = on_validation_start

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge for good."""
        # Not in `on_train_end`, where checkpoints are saved still.
        self._merge(trainer, pl_module, "fit")
        for average in averages_of(trainer) if "fit" in self.stages else ():
            # Should another callback fail, all get back what the training left.
            with owner_of(trainer).holding(average, plain_state(average)):
                install_(average, plain_state(pl_module))

    def _merge(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage in self.stages and isinstance(pl_module, MergeModule):
            merge_for_(trainer, pl_module, stage, vectors=self.vectors, recipe=self.recipe, **self.options)
        elif stage in self.stages:
            self._merge_foreign(trainer, pl_module)

    def _merge_foreign(self, trainer: Trainer, pl_module: LightningModule) -> None:
        owner = owner_of(trainer)
        with merging_together(trainer) as ranks, draws_kept():
            backbone, vectors = self._find_backbone(pl_module)
            owner.begin(trainer, pl_module)
            if self.task is not None:
                # Of what is trained, also where another callback holds merged weights in its place.
                with owner.own_weights(trainer, pl_module, averaged=False):
                    vectors = vectors.with_task(self.task, backbone)
            request = {"device": trainer.strategy.root_device, "ranks": ranks, **self.options}
            with owner.holding(backbone, vectors.shared_names) as undo:
                recipe, layers = self.recipe or MergeRecipe(), partial(trace_layers, backbone)
                undo.remember(self, "treatment")
                self.treatment = merge_model_(backbone, vectors, recipe, layers, request, undo).treatment

    def _find_backbone(self, pl_module: LightningModule) -> tuple[nn.Module, TaskVectors]:
        if self.vectors is None:
            raise ValueError(
                f"PruneAndMerge needs vectors=... on a {type(pl_module).__name__}; only a MergeModule has its own."
            )
        shapes = {name: self.vectors.headers[name].shape for name in self.vectors.shared_names}
        return named_submodule(pl_module, find_backbone(pl_module, shapes, self.backbone)), self.vectors
