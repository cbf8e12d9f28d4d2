"""`Gates`: `LayerGates` as a candidate of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lightning.pytorch import Trainer

from lwptv_lightning.evaluation import MergeModule, draws_kept
from lwptv_lightning.learning import LayerGates, require_own_loaders, require_whole_models
from lwptv_lightning.merging import Undo, keep_modes
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import own_tasks, require_finite, require_whole
from lwptv_lightning.rules import MergeRule


@dataclass(frozen=True, kw_only=True)
class Gates:
    """A candidate whose coefficients `lwptv_lightning.LayerGates` learns on a sweep's samples.

    Candidates that differ in their scale alone are learnt once.

    Args:
        rule: A rule that is a sum over tasks, by name, as a mapping or as a `MergeRule`.
        scale: What multiplies all that was learnt.
        steps: How long to learn.
        images, batch_size, anchor, start, lr, most, seed, modifiers: As for `lwptv_lightning.LayerGates`.

    Raises:
        ValueError: The scale is not finite, or below 0 beside what calibrates, or there is no step.

    Example:
        >>> {f"gates x {scale}": Gates(rule="tsv_m", scale=scale) for scale in (0.6, 0.8, 1.0)}["gates x 0.8"].scale
        0.8
    """

    rule: MergeRule[Any] | str | Mapping[str, Any] = "tsv_m"
    scale: float = 1.0
    steps: int = 90
    images: int = 64
    batch_size: int = 24
    anchor: float = 0.5
    start: float | None = None
    lr: float = 0.08
    most: float = 1.5
    seed: int = 0
    modifiers: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        require_finite("scale", self.scale)
        if self.scale < 0 and (self.modifiers or {}).get("calibrate") is not None:
            raise ValueError(f"scale must be at least 0 beside what calibrates, not {self.scale:g}.")
        require_whole("steps", self.steps, 1)

    def of(self, module: MergeModule) -> LayerGates:
        """Return what learns them for a module; it raises where something of it does not fit."""
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("scale", "steps")}
        return LayerGates(module, **given)

    def scaled(self, learnt: MergeRecipe) -> MergeRecipe:
        """Return the recipe that takes the candidate's scale of what was learnt."""
        if learnt.calibrate is None or learnt.coefficients is None:
            return learnt.replace(scale=self.scale)
        # A calibration acts on the recipe's scale; coefficients act on what it made.
        rows = learnt.coefficients.items()
        scaled = {task: {layer: self.scale * value for layer, value in row.items()} for task, row in rows}
        return learnt.replace(coefficients=scaled)

    def key(self, module: MergeModule) -> dict[str, Any]:
        """Return all that decides what is learnt, besides model, task vectors, heads and samples, as plain values."""
        learner = self.of(module)
        return {**learner.hparams, "steps": self.steps, "dtype": module.recipe.dtype}

    def loaders(self, module: MergeModule, samples: Mapping[str, Any]) -> dict[str, Any]:
        """Return the loader of each task among samples, that without a group where there is one.

        Raises:
            ValueError: A task has none, or several.
        """
        own = own_tasks(samples, module.vectors.tasks)
        names = [name for name, task in own.items() if name == f"id/{task}" or f"id/{task}" not in own]
        return require_own_loaders(module, {name: samples[name] for name in names})

    def learn(self, trainer: Trainer, module: MergeModule, samples: Mapping[str, Any]) -> MergeRecipe:
        """Learn the coefficients, on a trainer's devices and in its precision; the module stays as it is."""
        learner, loaders = self.of(module), self.loaders(module, samples)
        with draws_kept(loaders.values()), Undo() as undo:
            keep_modes(module, undo)
            _trainer_like(trainer, self.steps).fit(learner, loaders)
        return learner.recipe()


def require_learnable(trainer: Trainer) -> None:
    """Raise a `ValueError` where a trainer's processes hold one model together."""
    require_whole_models(trainer)


def _trainer_like(trainer: Trainer, steps: int) -> Trainer:
    """Return a trainer that learns where another one evaluates, and says nothing."""
    several = trainer.world_size > 1
    return Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.device_ids if trainer.accelerator.name() != "cpu" else trainer.num_devices,
        num_nodes=trainer.num_nodes,
        strategy="ddp" if several else "auto",
        precision=trainer.precision,
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
