"""`tune`: rule, score, ratio and coefficient, chosen on ID validation samples and measured on test samples once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from lightning.pytorch import Trainer
from torch import Tensor

from lwptv_lightning.evaluation import MergeModule, norms_of, of_norms, on_rank_zero, remembering
from lwptv_lightning.files import write_whole
from lwptv_lightning.merging import MergeOptions, require_options
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import Watcher, require_kind, require_known, require_whole
from lwptv_lightning.search.budget import Budget
from lwptv_lightning.search.compare import SweepResult
from lwptv_lightning.search.controls import CHOICES, Controls
from lwptv_lightning.search.passes import CandidatesModule, Passes
from lwptv_lightning.search.prepared import Prepared
from lwptv_lightning.search.samples import Samples
from lwptv_lightning.search.space import REFERENCE, SearchSpace, name_of
from lwptv_lightning.search.strategies import require_strategy, search
from lwptv_lightning.search.sweep import sweep
from lwptv_lightning.search.trials import Trials, joined
from lwptv_lightning.search.tuned import BASE, TuneResult
from lwptv_lightning.search.weights import Candidate, Weights, holds_data

CHOICE_FILE, PACE_FILE = "choice.json", "pace.json"


def tune(
    trainer: Trainer,
    module: MergeModule,
    validation: Mapping[str, Any] | None,
    test: Mapping[str, Any],
    *,
    budget: int | str | Budget = 200,
    space: SearchSpace | Mapping[str, Any] | None = None,
    strategy: str = "auto",
    choice: str = "one_standard_error",
    masks: int = 20,
    samples: Mapping[str, Any] | None = None,
    recalibrate: bool | None = None,
    store: str | Path | None = None,
    seed: int = 0,
    at_once: int = 16,
    progress: Watcher | bool | None = None,
    **options: Unpack[MergeOptions],
) -> TuneResult:
    """Search rules, scores, ratios and coefficients on ID validation samples; measure what they choose once.

    Candidates are compared on validation samples of the ID sets alone. `best` and `one_standard_error` choose among
    those that were evaluated on all of these. The same samples then tune two controls: the chosen rule without pruning,
    and with random masks. Only after that are the test loaders looked at, in one pass: base, experts, both choices,
    controls, task arithmetic at 0.3, and the chosen recipe with and without pruning at all scales, which is shown only.

    Args:
        trainer: Validates; with several devices each evaluates its share of the samples.
        module: Model, task vectors and heads; its own recipe and weights are left alone.
        validation: ID loaders to choose by, such as ``{"id/svhn": loader}``. Where there are none, each ID set of
            ``test`` is divided in two by the seed: one half chooses, and the other is reported.
        test: Loaders to report, ``id/...`` and ``ood/...``.
        budget: Evaluations, or a time such as ``"10min"``. An evaluation is one candidate on all validation samples,
            and counts in part on a share of them; controls and the last pass come on top. A time counts from the call
            to the choice; when it is over the candidates that are being evaluated are finished, and in successive
            halving the best of them so far, ``at_once`` at most, are evaluated on all samples.
        space: What to try; a mapping holds the arguments of a `SearchSpace`.
        strategy: ``"grid"``, ``"random"``, ``"halving"`` (successive halving on growing shares of the validation
            samples, the same for all candidates), ``"optuna"``, or ``"auto"``: the grid where the budget holds it, else
            halving.
        choice: Which choice the result recommends: ``"one_standard_error"`` or ``"best"``.
        masks: How many random masks to compare with; 0 for none.
        samples: ID loaders that rules which need data, `LayerGates` and batch normalisation read, no labels of them
            but for Fisher merging. By default a part of the validation samples, which then chooses nothing; batch
            normalisation alone reads those that choose.
        recalibrate: Whether to measure batch normalisation's statistics anew for each recipe; by default where they
            are merged.
        store: A folder for what is finished, by which a search that was ended goes on.
        seed: Of the samples' division and shares, of random orders and of intervals.
        at_once: How many models to hold in memory and evaluate in one pass.
        progress: Shows how far it is, as in `sweep`.
        options: Those of `lwptv_lightning.merge`.

    Returns:
        What was chosen, with all figures.

    Raises:
        UnknownNameError: There is no such strategy, choice, rule or score, or a set has no head.
        ValueError: A set has too few samples, a number is out of its range, or the strategy does not suit the budget.
        ModuleNotFoundError: The strategy needs a library that is not installed.

    Example:
        ``found = tune(trainer, module, suite.validation, suite.loaders, budget="10min")``, then
        ``print(*found.recommendation)`` and ``save_merged(module.vectors, found.recipe, "merged.safetensors")``.

    Reference:
        Successive halving is of Jamieson & Talwalkar, Non-stochastic best arm identification (2016). Here rungs take
        nested shares of the validation samples, and what they leave of the budget goes to the last one.
    """
    require_kind("trainer", trainer, Trainer, "a Trainer")
    require_kind("module", module, MergeModule, "a MergeModule")
    require_options(tune, options)
    budget = Budget.of(budget)
    require_known("choice", choice, CHOICES)
    require_whole("masks", masks, 0)
    require_whole("seed", seed, 0)
    require_whole("at_once", at_once, 1)
    prepared = Prepared.of(module, validation, test, space, samples, recalibrate, seed, options)
    began = time.monotonic()
    run = _Run(trainer, module, prepared, at_once, None if store is None else Path(store), options, progress)
    with remembering(module):
        trials, searched = run.search(budget, strategy, seed)
        picked = run.choose(trials.whole, choice, masks)
        run.keep(CHOICE_FILE, picked.told())
        tested, data, norms = run.test(picked), run.data(picked.recipe), run.norms(picked.recipe)
    return TuneResult(
        recipes=run.recipes,
        candidates=trials.tried,
        chosen=picked.chosen,
        choice=choice,
        validation=picked.validation,
        test=tested,
        data=data,
        norms=norms,
        experts={task: f"expert {task}" for task in module.vectors.tasks},
        unpruned=picked.unpruned,
        masks=tuple(picked.masks),
        curves={name: tuple(own) for name, own in picked.curves.items()},
        searched=searched,
        notes=prepared.notes,
        halved=prepared.halved,
        recalibrated=prepared.recalibrate,
        seconds=time.monotonic() - began,
        seed=seed,
    )


@dataclass(frozen=True)
class _Picked:
    """What was chosen by the validation samples, and what it is to be compared with.

    Attributes:
        choice: The choice that is recommended.
        chosen: Each choice's candidate.
        recipe: The recommended one's recipe.
        unpruned: The tuned rule without pruning, by name.
        masks: The tuned random masks.
        curves: ``"pruned"`` and ``"unpruned"`` to recipes at all scales, by name.
        validation: What all of these got right.
    """

    choice: str
    chosen: Mapping[str, str]
    recipe: MergeRecipe
    unpruned: str
    masks: Mapping[str, MergeRecipe]
    curves: Mapping[str, Mapping[str, MergeRecipe]]
    validation: SweepResult

    def told(self) -> dict[str, Any]:
        """Return it as plain values."""
        named = {"chosen": dict(self.chosen), "choice": self.choice, "unpruned": self.unpruned}
        return {**named, "masks": list(self.masks), "recipe": self.recipe.to_dict()}


@dataclass
class _Run:
    """Evaluates what a search asks for, and remembers which recipes that were."""

    trainer: Trainer
    module: MergeModule
    prepared: Prepared
    at_once: int
    store: Path | None
    options: Mapping[str, Any]
    progress: Watcher | bool | None = None
    recipes: dict[str, MergeRecipe] = field(default_factory=dict)

    def search(self, budget: Budget, strategy: str, seed: int) -> tuple[Trials, str]:
        """Evaluate candidates within a budget; return what was found, and what was done in words."""
        pool, shares = self.prepared.pool, self.prepared.shares
        trials = Trials(pool, self.evaluate, shares, budget, self.at_once, agreed=self._agreed)
        require_strategy(strategy, trials)
        trials.run([REFERENCE], always=True)
        trials.pace = self._kept_pace()
        searched = search(strategy, trials, seed)
        if trials.pace is not None:
            self.keep(PACE_FILE, {"seconds": trials.pace})
        return trials, searched

    def choose(self, found: SweepResult, choice: str, masks: int) -> _Picked:
        """Choose by validation samples, tune the controls on the same, and return both."""
        chosen = {name: choose(found) for name, choose in CHOICES.items()}
        recipe = self.recipes[chosen[choice]]
        usual = sorted({*self.prepared.space.scales_of(recipe.rule), *self._own_scale(recipe)})
        controls = Controls.of(recipe, usual, masks)
        missing = {name: own for name, own in controls.to_tune().items() if name not in found.names}
        if missing:
            found = joined([found, self.evaluate(missing, self.prepared.validation)])
        unpruned = CHOICES[choice](found, names=controls.plain)
        random = controls.masks_at(found, choice)
        own = self._scales(chosen[choice])
        pruned = {name_of(each): each for scale in own if (each := recipe.replace(scale=scale))}
        curves = {"pruned": pruned if name_of(recipe) not in controls.plain else {}, "unpruned": dict(controls.plain)}
        return _Picked(choice, chosen, recipe, unpruned, random, curves, found)

    def test(self, picked: _Picked) -> SweepResult:
        """Evaluate base, experts and what was picked on the test loaders, in one call."""
        vectors = self.module.vectors
        names = (*vectors.names, *vectors.averaged)
        wanted: dict[str, Candidate] = {BASE: {name: vectors.base(name) for name in names}}
        for task in vectors.tasks:
            wanted[f"expert {task}"] = {name: vectors.expert(task, name) for name in names}
        for name in dict.fromkeys((*picked.chosen.values(), picked.unpruned, REFERENCE)):
            wanted[name] = self.recipes[name]
        wanted |= picked.masks
        for curve in picked.curves.values():
            wanted |= {name: recipe for name, recipe in curve.items() if name not in wanted}
        return self.evaluate(wanted, self.prepared.test)

    def evaluate(self, candidates: Mapping[str, Candidate], loaders: Mapping[str, Any]) -> SweepResult:
        """Evaluate candidates on loaders; what was learnt before is not learnt again."""
        known = {name: self.recipes.get(name, candidate) for name, candidate in candidates.items()}
        found = sweep(
            self.trainer,
            self.module,
            known,
            loaders,
            at_once=self.at_once,
            store=self.store,
            samples=self.prepared.samples,
            recalibrate=self.prepared.recalibrate,
            progress=self.progress,
            **self.options,
        )
        self.recipes |= found.recipes
        return found

    def data(self, recipe: MergeRecipe) -> Any:
        """Return what a recipe's rule needs to know of data, where it was collected on samples."""
        if not recipe.rule.needs or holds_data({**self.module.options, **self.options}):
            return None
        return self._samples.statistics(recipe.rule.needs)

    def norms(self, recipe: MergeRecipe) -> dict[str, Tensor]:
        """Return the running statistics that a recipe was evaluated with, where they were measured anew."""
        if not self.prepared.recalibrate:
            return {}
        samples, kept = self._samples, {}
        options = {**self.module.options, **self.options}
        weights = Weights(self.module, self.trainer.strategy.root_device, options, samples.statistics)
        (made,) = weights.of({"chosen": recipe})

        def measure(trainer: Trainer, several: Sequence[dict[str, Tensor]]) -> None:
            samples.measure_norms_(trainer, several)
            kept.update(several[0])

        name, loader = next(iter(self.prepared.validation.items()))
        passes = Passes({name: loader})
        passes.run(self.trainer, CandidatesModule(self.module, passes, [made.tensors], measure=measure))
        wanted = of_norms(norms_of(self.module.model))
        return {name: kept[name].cpu().clone() for name in wanted if name in kept}

    @property
    def _samples(self) -> Samples:
        return Samples(self.trainer, self.module, self.prepared.samples)

    def _scales(self, name: str) -> list[float]:
        """Return the scales that are tried of what differs from a candidate in its scale alone."""
        pool = self.prepared.pool
        entry = pool[name]
        return sorted(
            {each.scale for each in pool.values() if (each.rule, each.pruning) == (entry.rule, entry.pruning)}
        )

    @staticmethod
    def _own_scale(recipe: MergeRecipe) -> list[float]:
        """Return a recipe's scale, unless it is one of learnt coefficients, which is another thing."""
        return [] if recipe.coefficients is not None else [recipe.effective_scale]

    def keep(self, name: str, value: Mapping[str, Any]) -> None:
        """Write what was found to the store, whole; nothing without a store, and once for several processes."""
        if self.store is not None and self.trainer.is_global_zero:
            self.store.mkdir(parents=True, exist_ok=True)
            write_whole(self.store / name, json.dumps(value, indent=2) + "\n")

    def _kept_pace(self) -> float | None:
        """Return the seconds of an evaluation that an earlier run with this store measured."""

        def read() -> float | None:
            try:
                path = (self.store or Path()) / PACE_FILE
                return None if self.store is None else float(json.loads(path.read_text())["seconds"])
            except (OSError, ValueError, KeyError, TypeError):
                return None

        found: float | None = self._agreed(read)
        return found

    def _agreed(self, action: Callable[[], Any]) -> Any:
        return on_rank_zero(self.trainer, action)
