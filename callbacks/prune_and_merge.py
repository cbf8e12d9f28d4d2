"""`PruneAndMerge`: evaluate a merged model instead of the module's own weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn

from lwptv_lightning.checkpoints import some_of
from lwptv_lightning.engine import Ranks
from lwptv_lightning.evaluation import MergeModule, ranks_of
from lwptv_lightning.layers import trace_layers
from lwptv_lightning.merging import install_, merge_into_, snapshot
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import require_known
from lwptv_lightning.task_vectors import TaskVectors

EVALUATIONS = ("validate", "test", "predict")
STAGES = (*EVALUATIONS, "fit")


class PruneAndMerge(Callback):
    """Prune and merge task vectors on the trainer's device when an evaluation starts, or when training is done.

    On a `MergeModule` the merged weights stay. Any other LightningModule gets its own weights back bit-exactly when
    the evaluation ends or fails, so that training goes on as if nothing had happened. Lightning's sanity check before
    ``fit`` is left alone. Several processes divide the work among them, and stop together where one of them fails.

    With the stage ``"fit"`` the module holds the merged weights, for good, once ``trainer.fit`` returns. All of the
    run's checkpoints hold the trained weights: merging comes after the last of them is saved. A fit that fails or is
    interrupted merges nothing.

    Args:
        vectors: The task vectors; on a `MergeModule` its own by default.
        recipe: Rule, scale and pruning; on a `MergeModule` its own by default, else ``MergeRecipe()``.
        backbone: Path of the submodule that the checkpoints are of, such as ``"model.encoder"``. By default the
            outermost submodule that has all merged tensors.
        task: The name under which a foreign module's own weights, as they are when merging starts, join the task
            vectors. By default they take no part.
        stages: When to merge: ``"validate"``, ``"test"``, ``"predict"``, which are the default, or ``"fit"``, which
            needs ``task``.

    Raises:
        UnknownNameError: No such stage.
        ValueError: The stage ``"fit"`` without ``task``.

    Example:
        >>> PruneAndMerge(stages=["validate"]).stages
        ('validate',)
    """

    def __init__(
        self,
        vectors: TaskVectors | None = None,
        recipe: MergeRecipe | None = None,
        *,
        backbone: str | None = None,
        task: str | None = None,
        stages: Sequence[str] = EVALUATIONS,
    ) -> None:
        for stage in stages:
            require_known("stage", stage, STAGES)
        if "fit" in stages and task is None:
            raise ValueError("stage 'fit' merges what was trained: name its task with task='...'.")
        self.vectors = vectors
        self.recipe = recipe
        self.backbone = backbone
        self.task = task
        self.stages = tuple(stages)
        self._replaced: tuple[nn.Module, dict[str, Tensor]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let a `MergeModule` find its layers for this recipe before it is sharded."""
        if isinstance(pl_module, MergeModule) and self.recipe is not None and self.recipe.needs_layers:
            pl_module.layers(self.recipe.granularity)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge, unless this is the sanity check."""
        if not trainer.sanity_checking:
            self._merge(trainer, pl_module, "validate", trainer.val_dataloaders)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge."""
        self._merge(trainer, pl_module, "test", trainer.test_dataloaders)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge."""
        self._merge(trainer, pl_module, "predict", trainer.predict_dataloaders)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give a foreign module its weights back."""
        self._restore()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give a foreign module its weights back."""
        self._restore()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give a foreign module its weights back."""
        self._restore()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge for good."""
        # Not in `on_train_end`, where checkpoints are saved still.
        self._merge(trainer, pl_module, "fit", None)
        self._replaced = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give a foreign module its weights back."""
        self._restore()

    def _merge(self, trainer: Trainer, pl_module: LightningModule, stage: str, loaders: object) -> None:
        if stage not in self.stages:
            return
        if isinstance(trainer.strategy, FSDPStrategy):
            raise ValueError(
                "FSDPStrategy flattens parameters, so that merged weights cannot be installed; use "
                "ModelParallelStrategy, which shards with FSDP2."
            )
        ranks = ranks_of(trainer)
        with ranks.sharing_errors():
            self._merge_together(trainer, pl_module, stage, loaders, ranks)

    def _merge_together(
        self, trainer: Trainer, pl_module: LightningModule, stage: str, loaders: object, ranks: Ranks
    ) -> None:
        if isinstance(pl_module, MergeModule):
            # Predictions need no names, but to choose a head by.
            if stage != "predict" or pl_module.heads:
                pl_module.prepare(loaders)
            pl_module.merge_(trainer.strategy.root_device, vectors=self.vectors, recipe=self.recipe, ranks=ranks)
        else:
            self._merge_foreign(trainer, pl_module, ranks)

    def _merge_foreign(self, trainer: Trainer, pl_module: LightningModule, ranks: Ranks) -> None:
        if self.vectors is None:
            raise ValueError(
                f"PruneAndMerge needs vectors=... on a {type(pl_module).__name__}; only a MergeModule has its own."
            )
        recipe = self.recipe or MergeRecipe()
        backbone = self._find_backbone(pl_module, self.vectors)
        layers = trace_layers(backbone, recipe.granularity) if recipe.needs_layers else None
        vectors = self.vectors if self.task is None else self.vectors.with_task(self.task, backbone)
        self._replaced = (backbone, snapshot(backbone, vectors.shared_names))
        merge_into_(backbone, vectors, recipe, layers, trainer.strategy.root_device, ranks=ranks)

    def _find_backbone(self, pl_module: LightningModule, vectors: TaskVectors) -> nn.Module:
        if self.backbone is not None:
            backbone: nn.Module = pl_module.get_submodule(self.backbone)
            return backbone
        submodule: nn.Module
        for submodule in pl_module.modules():
            if submodule.state_dict().keys() >= set(vectors.shared_names):
                return submodule
        raise ValueError(
            f"no submodule of {type(pl_module).__name__} has all merged tensors, such as "
            f"{some_of(vectors.shared_names, 3)} Name it with backbone='...'."
        )

    def _restore(self) -> None:
        if self._replaced is not None:
            install_(*self._replaced)
            self._replaced = None


class MergeOwnModule(PruneAndMerge):
    """What a `MergeModule` brings along: merges that module and leaves any other alone, so it holds no state.

    Example:
        >>> MergeOwnModule().vectors is None
        True
    """

    def _merge(self, trainer: Trainer, pl_module: LightningModule, stage: str, loaders: Any) -> None:
        if isinstance(pl_module, MergeModule):
            super()._merge(trainer, pl_module, stage, loaders)
