"""The weights of many candidates, made in an order in which what they share is made once."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from typing_extensions import TypeIs

from lwptv_lightning.engine import DataStatistics, Execution
from lwptv_lightning.evaluation import MergeModule, with_memo
from lwptv_lightning.functional import plain_state
from lwptv_lightning.merging import Merge, MergePlan, in_dtype, installable, made_as, unscaled
from lwptv_lightning.recipe import MergeRecipe, make_recipe
from lwptv_lightning.registry import require_known
from lwptv_lightning.saliency import LayerStatistics, collect_statistics
from lwptv_lightning.search.change import change_of
from lwptv_lightning.search.digests import digest_of
from lwptv_lightning.search.gates import Gates

Candidate: TypeAlias = "MergeRecipe | str | Mapping[str, Any] | Gates"
"""A model to evaluate: a recipe, gates to learn, or weights by the base's names of tensors; others are the base's."""

_OF_THE_MASK = ("score", "ratio", "ranking", "count", "keep", "prune", "seed")
"""The fields of a recipe that say nothing once its mask is known."""
_NOTHING_PRUNED = MergeRecipe()


@dataclass(frozen=True)
class Made:
    """A candidate that is ready to be evaluated.

    Attributes:
        name: The candidate's name.
        tensors: Its weights, by the model's names of them.
        seconds: How long its merge takes on its own.
        change: Norm of its change from the base; ``None`` where there is no base to compare with.
    """

    name: str
    tensors: Mapping[str, Tensor]
    seconds: float
    change: float | None


@dataclass(frozen=True)
class _Asked:
    """A recipe's merge with its mask, and how many seconds that took on its own."""

    merge: Merge
    execution: Execution
    seconds: float

    @property
    def shared(self) -> str:
        """What the rule's survey depends on, among recipes for the same task vectors and options."""
        # Without pruning these fields say nothing, and with it the mask says all.
        unsaid = {name: getattr(_NOTHING_PRUNED, name) for name in _OF_THE_MASK}
        return digest_of(unscaled(self.merge.recipe).replace(**unsaid).to_dict(), self.merge.mask)


@dataclass
class Weights:
    """Makes the weights of candidates, in the dtypes of a model.

    Args:
        module: The model, and the task vectors.
        device: Where to merge, and where the weights are wanted.
        options: Those of `lwptv_lightning.merge`.
        data: Returns what a kind of rules needs to know of data, where the options hold nothing of the kind.
    """

    module: MergeModule
    device: torch.device
    options: Mapping[str, Any]
    data: Callable[[str], DataStatistics] | None = None
    _statistics: dict[tuple[str, str], tuple[LayerStatistics, float]] = field(default_factory=dict)
    _own: dict[str, Tensor] = field(default_factory=dict)

    def of(self, candidates: Mapping[str, Candidate]) -> Iterator[Made]:
        """Make recipes and weights one by one; those that share a survey, or a merged task vector, follow each other.

        Each group of recipes holds one merged task vector in memory.
        """
        self._own = plain_state(self.module.model, keep_vars=True)
        given = {name: candidate for name, candidate in candidates.items() if is_weights(candidate)}
        recipes = {name: as_recipe(each) for name, each in candidates.items() if not is_weights(each)}
        merges = {name: self._asked(recipe) for name, recipe in recipes.items()}
        for names in _groups(candidates, lambda name: merges[name].shared if name in merges else (name,)):
            if names[0] in merges:
                yield from self._merged({name: merges[name] for name in names})
            else:
                yield from (self._made(name, self._whole(given[name]), 0.0) for name in names)

    def _asked(self, recipe: MergeRecipe) -> _Asked:
        options = {"device": self.device, **self.options}
        if recipe.rule.needs and self.data is not None and not holds_data(options):
            options["data"] = self.data(recipe.rule.needs)
        merge, execution = Merge.of(self.module.vectors, recipe, None, with_memo(options, self.module.memo))
        if merge.needs_layers:
            merge = replace(merge, layers=self.module.layers(recipe.granularity))
        seconds = 0.0
        if recipe.prunes_layers and merge.layers and not (merge.mask or merge.scores or merge.statistics):
            key, dtype = (recipe.granularity, merge.recipe.dtype), merge.recipe.torch_dtype
            if key not in self._statistics:
                began = time.perf_counter()
                collected = collect_statistics(self.module.vectors, merge.layers, execution=execution, dtype=dtype)
                self._statistics[key] = collected, time.perf_counter() - began
            statistics, seconds = self._statistics[key]
            merge = replace(merge, statistics=statistics)
        began = time.perf_counter()
        merge = merge.pruned(execution)
        return _Asked(merge, execution, seconds + time.perf_counter() - began)

    def _merged(self, asked: Mapping[str, _Asked]) -> Iterator[Made]:
        """Merge recipes with one survey."""
        first = next(iter(asked.values()))
        began = self._clock(first)
        plan = replace(first.merge, recipe=unscaled(first.merge.recipe)).plan(first.execution)
        seconds = self._clock(first) - began
        for names in _groups(asked, lambda name: made_as(asked[name].merge.recipe)):
            yield from self._rescaled(plan, {name: asked[name] for name in names}, seconds)

    def _rescaled(self, plan: MergePlan, asked: Mapping[str, _Asked], seconds: float) -> Iterator[Made]:
        """Merge recipes that differ in their coefficients alone; ``seconds`` is how long their plan took."""
        first = next(iter(asked.values()))
        began, own = self._clock(first), first.merge.recipe
        plan = plan.rescaled(plan.recipe.replace(scale=own.scale, task=own.task, calibrate=own.calibrate))
        if len(asked) > 1:
            plan = plan.holding()
        seconds += self._clock(first) - began
        for name, each in asked.items():
            began, own = self._clock(each), each.merge.recipe
            changes = {name: getattr(own, name) for name in ("scale", "layer_scaling", "calibrate")}
            tensors = dict(plan.rescaled(plan.recipe.replace(**changes), each.merge.layers).tensors())
            taken = self._clock(each) - began
            yield self._made(name, tensors, each.seconds + seconds + taken)

    @staticmethod
    def _clock(asked: _Asked) -> float:
        """Return seconds that pass also with what others have computed, so that a merge takes what it takes alone."""
        memo, threads = asked.execution.memo, asked.execution.threads
        return time.perf_counter() + (0.0 if memo is None else memo.spared / threads)

    def _made(self, name: str, weights: Mapping[str, Tensor], seconds: float) -> Made:
        own = self._own
        # Of a tensor with several names, the last one's value stays in a model that they are installed into.
        last = {id(own[each]): each for each in weights if each in own}
        names, vectors = last.values(), self.module.held_vectors
        change = None
        if vectors is not None:
            merged = {each: last.get(id(own[each])) for each in (*vectors.names, *vectors.averaged) if each in own}
            change = change_of({each: weights[name] for each, name in merged.items() if name is not None}, vectors)
        # In the dtypes of the model: checkpoints are often in half precision.
        placed = {each: in_dtype(each, weights[each].to(self.device), own[each].dtype) for each in names}
        return Made(name, placed, seconds, change)

    def require_known(self, weights: Mapping[str, Tensor]) -> None:
        """Raise an `UnknownNameError` for weights of which neither the model nor the base has a tensor."""
        vectors = self.module.held_vectors
        known = {**plain_state(self.module.model), **({} if vectors is None else vectors.headers)}
        for name in weights:
            require_known("tensor", name, known)

    def _whole(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights with the base's where they name none, not with what the model was initialised with."""
        self.require_known(weights)
        model, vectors = self.module.model, self.module.held_vectors
        unnamed = [] if vectors is None else [name for name in installable(model, vectors) if name not in weights]
        # In this order, so that of a tied tensor the name that is given counts.
        whole = {name: vectors.base(name) for name in unnamed if vectors is not None} | dict(weights)
        return {name: tensor.clone() for name, tensor in whole.items()}  # of a mapped file, which may change


def as_recipe(candidate: Candidate, options: Mapping[str, Any] | None = None) -> MergeRecipe:
    """Return the recipe that a candidate is; gates are none before they are learnt."""
    if isinstance(candidate, Gates):
        raise TypeError("gates have no recipe before they are learnt.")
    return make_recipe(candidate, options)


def holds_data(options: Mapping[str, Any]) -> bool:
    """Tell whether options of merging hold what was collected on data."""
    statistics = options.get("statistics")
    return options.get("data") is not None or not isinstance(statistics, LayerStatistics | None)


def is_weights(candidate: object) -> TypeIs[Mapping[str, Tensor]]:
    """Tell whether a candidate is weights, and no recipe or gates."""
    return isinstance(candidate, Mapping) and all(isinstance(value, Tensor) for value in candidate.values())


def _groups(names: Iterable[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Put names with equal keys together, in the order of the first of each."""
    groups: dict[Hashable, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return list(groups.values())
