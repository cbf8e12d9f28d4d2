"""Fronts of one zoo, measured candidate by candidate; what is stored is not measured again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from learning import Learnt, data_statistics, learnt
from methods import Front, factor, next_steps
from outcomes import Outcome, Store, key_of
from subject import Subject

from lwptv_lightning import MergeRecipe
from lwptv_lightning.merging import Merge, MergePlan
from lwptv_lightning.saliency import collect_statistics
from lwptv_lightning.search import Candidate, sweep
from lwptv_lightning.zoo.demo import quiet_lightning, quiet_trainer

AT_ONCE = 32


@dataclass
class Measurement:
    """Measures fronts of one zoo.

    Args:
        subject: The zoo.
        store: Where outcomes are kept.
        learnt: The folder of what was learnt.
        until: When to begin nothing new, in seconds of `time.monotonic`.
    """

    subject: Subject
    store: Store
    learnt: Path
    until: float = float("inf")
    _data: dict[str, Any] = field(default_factory=dict)

    @property
    def has_time(self) -> bool:
        return time.monotonic() < self.until

    def of(self, front: Front, *, run: bool = True) -> dict[int, Outcome] | None:
        """Return a front's outcomes by step; `None` where they are not complete and may not be made so."""
        known = learnt(self.subject, front, self.learnt, learn=run and self.has_time)
        if known is None:
            return None
        found: dict[int, Outcome] = {}
        plan: MergePlan | None = None
        while steps := next_steps(front, {step: each.average("validation", "id/") for step, each in found.items()}):
            recipes = {step: _at(front, known, step) for step in steps}
            keys = {step: self._key(front, known, recipe) for step, recipe in recipes.items()}
            missing = {step: recipe for step, recipe in recipes.items() if self.store.get(keys[step]) is None}
            if missing and not (run and self.has_time):
                return None
            if missing:
                # Merged once for all scales, as a sweep would for those of one call.
                plan = plan or self._merge(front, known, next(iter(missing.values()))).plan().holding()
                self._measure(front, plan, missing, keys)
            found |= {step: self._stored(keys[step]) for step in steps}
        return dict(sorted(found.items()))

    def references(self, *, run: bool = True) -> dict[str, Outcome] | None:
        """Return the outcomes of the base and of each expert."""
        vectors = self.subject.module.vectors
        given: dict[str, Candidate] = {"base": {name: vectors.base(name) for name in vectors.names}}
        for task in vectors.tasks:
            given[f"expert {task}"] = {name: vectors.expert(task, name) for name in vectors.names}
        keys = {name: key_of(self.subject.print, name) for name in given}
        if any(self.store.get(key) is None for key in keys.values()):
            if not (run and self.has_time):
                return None
            self._sweep(given, {name: {"norm": self._norm(tensors)} for name, tensors in given.items()}, keys)
        return {name: self._stored(key) for name, key in keys.items()}

    def _stored(self, key: str) -> Outcome:
        outcome = self.store.get(key)
        if outcome is None:
            raise FileNotFoundError(f"{self.store.path(key)} disappeared while it was needed.")
        return outcome

    def _key(self, front: Front, known: Learnt, recipe: MergeRecipe) -> str:
        # Fields at their defaults say nothing, also those that recipes get later.
        usual = MergeRecipe().to_dict()
        said = {name: value for name, value in recipe.to_dict().items() if name == "rule" or value != usual.get(name)}
        return key_of(self.subject.print, said, known.print if front.masks else "")

    def _merge(self, front: Front, known: Learnt, recipe: MergeRecipe) -> Merge:
        vectors, layers = self.subject.module.vectors, self.subject.module.layers()
        if front.masks:
            return Merge(vectors, recipe, layers, scores=known.scores)
        if recipe.rule.needs and recipe.rule.needs not in self._data:
            self._data[recipe.rule.needs] = data_statistics(self.subject, recipe.rule.needs)
        if recipe.prunes_layers and "" not in self._data:
            self._data[""] = collect_statistics(vectors, layers)
        statistics = self._data[""] if recipe.prunes_layers else None
        return Merge(vectors, recipe, layers, statistics=statistics, data=self._data.get(recipe.rule.needs or "no"))

    def _measure(
        self, front: Front, plan: MergePlan, recipes: Mapping[int, MergeRecipe], keys: Mapping[int, str]
    ) -> None:
        weights = {step: dict(plan.rescaled(recipe).tensors()) for step, recipe in recipes.items()}
        abouts = {
            str(step): {"front": front.name, "step": step, "scale": recipe.scale, "norm": self._norm(weights[step])}
            for step, recipe in recipes.items()
        }
        candidates: dict[str, Candidate] = {str(step): tensors for step, tensors in weights.items()}
        self._sweep(candidates, abouts, {str(step): keys[step] for step in recipes})

    def _norm(self, weights: Mapping[str, torch.Tensor]) -> float:
        """Return the norm of what changed against the base."""
        vectors = self.subject.module.vectors
        squares = [(weights[name].double() - vectors.base(name).double()).square().sum() for name in vectors.names]
        return float(torch.stack(squares).sum().sqrt())

    def _sweep(
        self, candidates: Mapping[str, Candidate], abouts: Mapping[str, Mapping[str, object]], keys: Mapping[str, str]
    ) -> None:
        subject = self.subject
        with quiet_lightning():
            found = sweep(quiet_trainer(), subject.module, candidates, subject.loaders(), at_once=AT_ONCE)
        for name in candidates:
            correct = {loader: outcomes.numpy() for loader, outcomes in found.correct(name).items()}
            self.store.put(keys[name], Outcome(abouts[name], subject.split(correct)))


def _at(front: Front, known: Learnt, step: int) -> MergeRecipe:
    """Return a front's recipe at a step of its grid."""
    recipe = front.recipe or known.recipe
    if recipe is None:
        raise ValueError(f"front {front.name!r} has neither a recipe nor learns one.")
    return recipe.replace(scale=float(f"{recipe.effective_scale * factor(step):.4g}"))
