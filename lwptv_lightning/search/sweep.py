"""Evaluate many merged models in one pass over the data, sample by sample, so that they can be compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Unpack

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lwptv_lightning.evaluation import (
    MergeModule,
    Replicas,
    callbacks_of,
    draws_kept,
    in_precision,
    loaders_of,
    naming_loader,
    replicas_of,
    require_classified,
    require_labels,
    require_results_here,
    share_evaluation_,
    share_loaders,
    uncombined,
)
from lwptv_lightning.functional import call_with, plain_name, plain_state
from lwptv_lightning.merging import MergeOptions, Undo, in_dtype, keep_modes, require_options
from lwptv_lightning.registry import require_kind, require_whole
from lwptv_lightning.search.compare import SweepResult
from lwptv_lightning.search.outcomes import Outcomes
from lwptv_lightning.search.weights import Candidate, Weights


def sweep(
    trainer: Trainer,
    module: MergeModule,
    candidates: Mapping[str, Candidate],
    dataloaders: Mapping[str, Any],
    *,
    at_once: int = 16,
    **options: Unpack[MergeOptions],
) -> SweepResult:
    """Evaluate many merged models, several of them in one pass over the data.

    Saliency statistics are collected once for all recipes of a granularity that prune. Recipes with the same rule and
    mask are surveyed once, and those that differ in scale or layer scaling alone share one merged task vector, where
    ``max_memory`` leaves room for it; to the bit, each model is what it is on its own. Where the candidates take
    several passes, the order of the samples is drawn once and each pass begins with the same random states, so that all
    see the same.

    Args:
        trainer: Validates; with several devices each evaluates its share of the samples.
        module: Model, task vectors and heads; its own recipe and weights are left alone.
        candidates: Name to recipe or weights.
        dataloaders: Name to loader, ``id/...`` and ``ood/...``.
        at_once: How many models to hold in memory and evaluate in one pass.
        options: Those of `lwptv_lightning.merge` for all recipes; they go before the module's own.

    Returns:
        What each candidate got right, for all samples, on every process; in the order of the data set, where a loader
        has a sampler and collates one sample of each. Its figures are accuracies, whatever the module's metric.

    Raises:
        ValueError: The loaders are not named as they should be, no candidate is given, a loader gives other samples in
            a second pass or is measured by something else than classes, or the trainer's strategy is ``"ddp_spawn"`` or
            alike, which leaves no outcomes.
        TypeError: Merging has no such option.
    """
    require_options(sweep, options)
    require_kind("trainer", trainer, Trainer, "a Trainer")
    require_kind("module", module, MergeModule, "a MergeModule")
    require_kind("candidates", candidates, Mapping, "a mapping of names to recipes or weights")
    require_whole("at_once", at_once, 1)
    if not candidates:
        raise ValueError("candidates is empty: expected at least one recipe.")
    require_results_here(trainer, "the outcomes of a sweep")
    _require_candidates_alone(trainer)
    dataloaders = uncombined(dataloaders)
    module.prepare(dataloaders, Replicas())
    module.require_logits()
    module.metric_choice.require_of_classes("a sweep", module.heads_for(dataloaders))
    made = Weights(module, trainer.strategy.root_device, {**module.options, **options}).of(candidates)
    outcomes: dict[str, list[Tensor]] = {}
    seconds: dict[str, float] = {}
    changes: dict[str, float] = {}
    passes = _Passes(dataloaders)
    while some := list(islice(made, at_once)):
        seconds |= {each.name: each.seconds for each in some}
        changes |= {each.name: each.change for each in some if each.change is not None}
        step = _SweepModule(module, [each.tensors for each in some], passes)
        with draws_kept(dataloaders.values()), in_precision(trainer, module), Undo() as undo:
            keep_modes(module, undo)
            trainer.validate(step, dataloaders, verbose=False)
        for loader, correct in step.outcomes.items():
            outcomes.setdefault(loader, []).append(correct)
    rows = [list(seconds).index(name) for name in candidates]
    ordered = {loader: torch.cat(parts)[rows] for loader, parts in outcomes.items()}
    by_name: list[dict[str, float]] = [
        {name: found[name] for name in candidates if name in found} for found in (seconds, changes)
    ]
    return SweepResult(tuple(candidates), ordered, *by_name)


def _require_candidates_alone(trainer: Trainer) -> None:
    """Raise a `ValueError` for a callback that would put something else than a candidate into the model."""
    for callback in callbacks_of(trainer):
        if getattr(callback, "installs_weights", False) or getattr(callback, "place", None) == "measures":
            raise ValueError(
                f"a sweep evaluates each candidate as it is, and {type(callback).__name__} changes what a model holds: "
                "use a trainer without it, or give as a candidate the tensors that it leaves."
            )


@dataclass
class _Passes:
    """What the passes over the data have in common: loaders whose batches are drawn once, and their samples."""

    given: Mapping[str, Any]
    loaders: dict[str, Any] | None = None
    seen: dict[str, Tensor] = field(default_factory=dict)

    def share(self, loaders: object, replicas: Replicas, limit: float | None) -> dict[str, Any]:
        """Do what `share_loaders` does, the same in each pass."""
        if self.loaders is None:
            # Later passes draw no order, and begin with the same random states.
            with draws_kept(self.given.values()):
                self.loaders = share_loaders(loaders, replicas, limit, fixed=True)
        return self.loaders

    def require_same(self, name: str, seen: Tensor) -> None:
        """Raise `ValueError` unless a loader gives what it gave in the first pass."""
        first = self.seen.setdefault(name, seen)
        if not torch.equal(first, seen):
            found = f"{len(seen)} samples after {len(first)}"
            if len(first) == len(seen):
                found = f"{int((first != seen).sum())} of {len(seen)} samples changed"
            raise ValueError(
                f"loader {name!r} gives other samples in a second pass ({found}), so that candidates could not be "
                "compared in pairs. Let it give the same each time, without random augmentation, or raise at_once."
            )


class _SweepModule(LightningModule):
    """Runs each batch through one architecture with several sets of weights."""

    def __init__(self, module: MergeModule, weights: Sequence[Mapping[str, Tensor]], passes: _Passes) -> None:
        super().__init__()
        self.module = module
        own = {plain_name(name): name for name in module.model.state_dict()}
        self._weights = [{f"model.{own[name]}": tensor for name, tensor in tensors.items()} for tensors in weights]
        self._passes = passes
        self._replicas = Replicas()
        self._collected: dict[str, Outcomes] = {}
        self.outcomes: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        share_evaluation_(self.trainer, stage, self._passes.share)

    def on_validation_start(self) -> None:
        # The trainer's precision may have changed the model's dtypes since.
        own = plain_state(self.module)
        self._weights = [
            {name: in_dtype(name, tensor, own[plain_name(name)].dtype) for name, tensor in weights.items()}
            for weights in self._weights
        ]
        self._replicas = replicas_of(self.trainer)
        loaders = loaders_of(self.trainer, "validate")
        self._collected = {name: Outcomes(name, loader) for name, loader in loaders.items()}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        loader = tuple(self._collected)[dataloader_idx]
        with self._replicas.ranks.telling_errors():
            with naming_loader(loader):
                inputs, targets = self.module.unpack(batch)
            arguments = inputs, self.module.head_of(loader)
            with torch.compiler.set_stance("force_eager"):  # compiled code would be compiled anew for each candidate
                logits = [call_with(self.module, weights, *arguments) for weights in self._weights]
            require_classified(logits[0], self.module.model, dense=False)
            require_labels(loader, logits[0], targets)
            predicted = [each.argmax(1) for each in logits]
            if predicted[0].shape != targets.shape:
                expected, given = tuple(predicted[0].shape), tuple(targets.shape)
                raise ValueError(f"loader {loader!r} gives targets of shape {given}; expected labels, {expected}.")
            self._collected[loader].add(batch_idx, [inputs, targets], torch.stack(predicted) == targets)

    def on_validation_epoch_end(self) -> None:
        # Put together here, where all processes meet.
        with self._replicas.ranks.sharing_errors():
            for name, collected in self._collected.items():
                self.outcomes[name], seen = collected.together(self._replicas)
                self._passes.require_same(name, seen)
