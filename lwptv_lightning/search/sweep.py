"""Evaluate many merged models in one pass over the data, sample by sample, so that they can be compared in pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import torch
from lightning.pytorch import Trainer

from lwptv_lightning.evaluation import (
    MergeModule,
    MergingCallback,
    Replicas,
    callbacks_of,
    ranks_of,
    remembering,
    require_results_here,
    uncombined,
)
from lwptv_lightning.merging import MergeOptions, Undo, require_options
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import Advance, Watcher, require_kind, require_whole
from lwptv_lightning.report import progress as bar
from lwptv_lightning.search.asked import Asked
from lwptv_lightning.search.compare import SweepResult
from lwptv_lightning.search.keys import Keys
from lwptv_lightning.search.passes import Passes
from lwptv_lightning.search.samples import Samples
from lwptv_lightning.search.store import Found, Store
from lwptv_lightning.search.weights import Candidate


def sweep(
    trainer: Trainer,
    module: MergeModule,
    candidates: Mapping[str, Candidate],
    dataloaders: Mapping[str, Any],
    *,
    at_once: int = 16,
    store: str | Path | None = None,
    samples: Mapping[str, Any] | None = None,
    recalibrate: bool = False,
    progress: Watcher | bool | None = None,
    **options: Unpack[MergeOptions],
) -> SweepResult:
    """Evaluate many merged models, several of them in one pass over the data.

    Saliency statistics are collected once for all recipes of a granularity that prune. Recipes with the same rule and
    mask are surveyed once, and those that differ in scale or layer scaling alone share one merged task vector, where
    ``max_memory`` leaves room for it; to the bit, each model is what it is on its own. Where the candidates take
    several passes, the order of the samples is drawn once and each pass begins with the same random states, so that all
    see the same. In memory are ``at_once`` models, the task vector that some of them share, and what ``max_memory``
    allows a merge.

    With a ``store`` each candidate that was measured is a file. A sweep that was killed goes on where it was, and ends
    with the result, and files, of one that was not, but for ``seconds``, which are those of each candidate's last
    merge. What is served from the store was measured by a sweep with the same recipe or weights, task vectors, model,
    heads, options, samples, precision and versions; what it was measured on is read again to know that, without the
    model. Nothing is run or merged where all is stored.

    Args:
        trainer: Validates; with several devices each evaluates its share of the samples.
        module: Model, task vectors and heads; its own recipe and weights are left alone.
        candidates: Name to recipe, `Gates` or weights.
        dataloaders: Name to loader, ``id/...`` and ``ood/...``.
        at_once: How many models to hold in memory and evaluate in one pass.
        store: A folder for what is measured; several sweeps, also at a time, may have the same.
        samples: Name to loader, ``id/...``, of data that none of the candidates is reported on: rules that need data
            get the statistics that `CollectDataStatistics` collects there (of 256 samples of each loader), unless the
            options hold some, `Gates` learn there, and running statistics are measured there.
        recalibrate: Whether to measure running statistics of batch normalisation anew for each recipe, on all batches
            of ``samples``, as `RecalibrateBatchNorm` does it; weights that are given keep theirs.
        progress: Shows how far it is: by default on a terminal alone, with the time left; ``False``: nothing; or what
            `lwptv_lightning.registry.watching` takes.
        options: Those of `lwptv_lightning.merge` for all recipes; they go before the module's own.

    Returns:
        What each candidate got right, for all samples, on every process; in the order of the data set, where a loader
        has a sampler and collates one sample of each. Its figures are accuracies, whatever the module's metric.

    Raises:
        ValueError: The loaders are not named as they should be, no candidate is given, a loader gives other samples in
            a second pass or is measured by something else than classes, a candidate needs samples and there are none,
            one of the samples' loaders is no ID set, or the trainer's strategy is ``"ddp_spawn"`` or alike, which
            leaves no outcomes.
        TypeError: Merging has no such option; or with a store, it cannot be told of something whether it is the same.
        OSError: Nothing can be written to the store.
    """
    require_options(sweep, options)
    require_kind("trainer", trainer, Trainer, "a Trainer")
    require_kind("module", module, MergeModule, "a MergeModule")
    require_kind("candidates", candidates, Mapping, "a mapping of names to recipes, Gates or weights")
    require_whole("at_once", at_once, 1)
    require_kind("recalibrate", recalibrate, bool, "True or False")
    require_kind("progress", progress, bool | Callable | None, "True, False or what takes what is done and its steps")
    if not candidates:
        raise ValueError("candidates is empty: expected at least one recipe.")
    require_results_here(trainer, "the outcomes of a sweep")
    _require_candidates_alone(trainer)
    dataloaders = uncombined(dataloaders)
    module.prepare(dataloaders, Replicas())
    module.require_logits()
    module.metric_choice.require_of_classes("a sweep", module.heads_for(dataloaders))
    passes = Passes(dataloaders, exact=store is not None)
    asked = Asked(
        trainer, module, {**module.options, **options}, passes, Samples(trainer, module, samples), recalibrate
    )
    wanted = asked.required(candidates)
    if store is not None:
        asked.keys = Keys.of(trainer, module, dataloaders, asked.options)
        with ranks_of(trainer).sharing_errors():
            asked.store = Store.at(store)  # on each process: those that a launcher started have not met yet
    with remembering(module), _shown(trainer, progress) as watcher:
        learnt = asked.learnt(wanted, watcher)
        found = asked.stored(learnt)
        missing = {name: each for name, each in learnt.items() if name not in found}
        with watcher("Sweeping", asked.steps_of(missing)) as advance:
            found |= asked.measured(missing, at_once, advance)
    return _result({name: found[name] for name in candidates}, learnt)


def _result(found: Mapping[str, Found], learnt: Mapping[str, Candidate]) -> SweepResult:
    loaders = next(iter(found.values())).outcomes
    outcomes = {loader: torch.stack([each.outcomes[loader] for each in found.values()]) for loader in loaders}
    changes = {name: each.change for name, each in found.items() if each.change is not None}
    seconds = {name: each.seconds for name, each in found.items()}
    recipes = {name: each for name, each in learnt.items() if isinstance(each, MergeRecipe)}
    return SweepResult(tuple(found), outcomes, seconds, changes, recipes)


@contextmanager
def _shown(trainer: Trainer, progress: Watcher | bool | None) -> Iterator[Watcher]:
    """Give what shows work; a trainer's own bar, which would start anew with each pass, stands back."""
    watcher: Watcher = _nobody if progress is False else bar if progress in (None, True) else progress  # type: ignore[assignment]
    own = trainer.progress_bar_callback
    with Undo() as undo:
        if own is not None and getattr(own, "is_enabled", False):
            undo.add(own.enable)
            own.disable()
        yield watcher
        undo.take_back()


@contextmanager
def _nobody(what: str, total: float | None = None) -> Iterator[Advance]:
    yield lambda steps=1, what=None: None


def _require_candidates_alone(trainer: Trainer) -> None:
    """Raise a `ValueError` for a callback that would put something else than a candidate into the model."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, MergingCallback):
            continue  # a merge module left it, and it merges such alone
        if getattr(callback, "installs_weights", False) or getattr(callback, "place", None) == "measures":
            raise ValueError(
                f"a sweep evaluates each candidate as it is, and {type(callback).__name__} changes what a model holds: "
                "use a trainer without it, or give as a candidate the tensors that it leaves."
            )
