"""Evaluate many merged models in one pass over the data, sample by sample, so that they can be compared in pairs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.func import functional_call
from typing_extensions import Unpack

from lwptv_lightning.evaluation import MergeModule, SampleOutcomes, loaders_of, sample_positions
from lwptv_lightning.functional import plain_name, plain_state
from lwptv_lightning.merging import Merge, MergeOptions, in_dtype, require_options
from lwptv_lightning.recipe import MergeRecipe, make_recipe
from lwptv_lightning.saliency import LayerStatistics, collect_statistics
from lwptv_lightning.search.compare import SweepResult

Candidate: TypeAlias = "MergeRecipe | str | Mapping[str, Any]"
"""A model to evaluate: a recipe, or weights by the names of the base's tensors."""


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

    Saliency statistics are collected once for all recipes that prune.

    Args:
        trainer: Validates; with several devices each evaluates its share of the samples.
        module: Model, task vectors and heads; its own recipe and weights are left alone.
        candidates: Name to recipe or weights.
        dataloaders: Name to loader, ``id/...`` and ``ood/...``.
        at_once: How many models to hold in memory and evaluate in one pass.
        options: Those of `lwptv_lightning.merge` for all recipes; they go before the module's own.

    Returns:
        What each candidate got right, for all samples, on every process.

    Raises:
        ValueError: The loaders are not named as they should be, or no candidate is given.
        TypeError: Merging has no such option.
    """
    require_options(sweep, options)
    if not candidates:
        raise ValueError("candidates is empty: expected at least one recipe.")
    module.prepare(dataloaders)
    weights = _Weights(module, trainer.strategy.root_device, {**module.options, **options})
    names = tuple(candidates)
    outcomes: dict[str, list[Tensor]] = {}
    seconds: dict[str, float] = {}
    for start in range(0, len(names), at_once):
        made = {name: weights.of(candidates[name]) for name in names[start : start + at_once]}
        seconds |= {name: taken for name, (_, taken) in made.items()}
        step = _SweepModule(module, [tensors for tensors, _ in made.values()])
        trainer.validate(step, dataloaders, verbose=False)
        for loader, correct in step.outcomes.items():
            outcomes.setdefault(loader, []).append(correct)
    return SweepResult(names, {loader: torch.cat(parts) for loader, parts in outcomes.items()}, seconds)


@dataclass
class _Weights:
    """Makes the weights of candidates, with statistics shared between recipes of one granularity."""

    module: MergeModule
    device: torch.device
    options: dict[str, Any]
    statistics: dict[tuple[str, str], tuple[LayerStatistics, float]] = field(default_factory=dict)

    def of(self, candidate: Candidate) -> tuple[dict[str, Tensor], float]:
        """Return a candidate's weights on the trainer's device, and how many seconds its merge takes."""
        if isinstance(candidate, Mapping) and all(isinstance(value, Tensor) for value in candidate.values()):
            weights, seconds = candidate, 0.0
        else:
            weights, seconds = self._merge(make_recipe(candidate))
        own = plain_state(self.module.model, keep_vars=True)
        # Of a tensor with several names, the last one's value stays in a model that they are installed into.
        names = {id(own[name]): name for name in weights if name in own}.values()
        # In the dtypes of the model: checkpoints are often in half precision.
        return {name: in_dtype(name, weights[name].to(self.device), own[name].dtype) for name in names}, seconds

    def _merge(self, recipe: MergeRecipe) -> tuple[dict[str, Tensor], float]:
        merge, execution = Merge.of(self.module.vectors, recipe, None, {"device": self.device, **self.options})
        seconds = 0.0
        if merge.needs_layers:
            merge = replace(merge, layers=self.module.layers(recipe.granularity))
        if recipe.prunes_layers and merge.layers and not (merge.mask or merge.scores or merge.statistics):
            key, dtype = (recipe.granularity, merge.recipe.dtype), merge.recipe.torch_dtype
            if key not in self.statistics:
                began = time.perf_counter()
                collected = collect_statistics(self.module.vectors, merge.layers, execution=execution, dtype=dtype)
                self.statistics[key] = collected, time.perf_counter() - began
            statistics, seconds = self.statistics[key]
            merge = replace(merge, statistics=statistics)
        began = time.perf_counter()
        merged = dict(merge.plan(execution).tensors())
        return merged, seconds + time.perf_counter() - began


class _SweepModule(LightningModule):
    """Runs each batch through one architecture with several sets of weights."""

    def __init__(self, module: MergeModule, weights: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.module = module
        own = {plain_name(name): name for name in module.model.state_dict()}
        self._weights = [{f"model.{own[name]}": tensor for name, tensor in tensors.items()} for tensors in weights]
        self._outcomes: dict[str, SampleOutcomes] = {}
        self._loaders: dict[str, Any] = {}
        self.outcomes: dict[str, Tensor] = {}

    def on_validation_start(self) -> None:
        # The trainer's precision may have changed the model's dtypes since.
        own = self.module.state_dict()
        self._weights = [{k: in_dtype(k, tensor, own[k].dtype) for k, tensor in each.items()} for each in self._weights]
        self._loaders = loaders_of(self.trainer, "validate")
        self._outcomes = {loader: SampleOutcomes().to(self.device) for loader in self._loaders}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        loader = tuple(self._loaders)[dataloader_idx]
        inputs, targets = self.module.unpack(batch)
        positions = sample_positions(self._loaders[loader], batch_idx, len(targets))
        arguments = inputs, self.module.head_of(loader)
        with torch.compiler.set_stance("force_eager"):  # compiled code would be compiled anew for each candidate
            predicted = [functional_call(self.module, weights, arguments).argmax(1) for weights in self._weights]
        correct = torch.stack(predicted)[:, : len(positions)] == targets[: len(positions)]
        self._outcomes[loader].update(positions.to(self.device), correct)

    def on_validation_epoch_end(self) -> None:
        # Computed here, where all processes meet, since it synchronises them.
        self.outcomes = {loader: outcomes.compute().cpu() for loader, outcomes in self._outcomes.items()}
