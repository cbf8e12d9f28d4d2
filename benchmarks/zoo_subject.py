"""The zoo, or some tasks of it, on which the benchmark evaluates recipes and times merges."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import DataLoader

from lwptv_lightning import CollectDataStatistics, MergeModule, MergeRecipe, TaskVectors, merge, zoo
from lwptv_lightning.search import SweepResult, sweep
from lwptv_lightning.zoo.demo import quiet_trainer

AT_ONCE = 32


class Subject:
    """The first tasks of the zoo.

    Args:
        tasks: How many.
        options: Those of the command line: numbers of images and merges, the store.
    """

    def __init__(self, tasks: int, options: argparse.Namespace) -> None:
        self.tasks = zoo.ID_SETS[:tasks]
        self.options = options
        self._statistics: dict[str, Any] = {}

    @cached_property
    def module(self) -> MergeModule:
        return MergeModule(zoo.create_model(), self._open(), heads=zoo.heads())

    def validate(self, recipes: Mapping[str, MergeRecipe]) -> SweepResult:
        """Evaluate recipes on the validation draw of the tasks' sets."""
        return self._sweep(recipes, zoo.loaders("validation", self.options.validation, sets=self.tasks))

    def test(self, recipes: Mapping[str, MergeRecipe]) -> SweepResult:
        """Evaluate recipes on the test draw of the tasks' sets and of all OOD sets."""
        return self._sweep(recipes, zoo.loaders("test", self.options.size, sets=(*self.tasks, *zoo.OOD_SETS)))

    def seconds(self, recipe: MergeRecipe) -> float:
        """Return the median of the processor's seconds that a merge takes, from files to tensors."""
        layers, data = self.module.layers(), self._data(recipe.rule.needs)
        taken = []
        for _ in range(self.options.merges):
            vectors = self._open()  # which remembers nothing
            began = time.process_time()
            merge(vectors, recipe, layers, **data)
            taken.append(time.process_time() - began)
        return statistics.median(taken)

    def _open(self) -> TaskVectors:
        experts = zoo.expert_paths()
        return TaskVectors.open(zoo.base_path(), {task: experts[task] for task in self.tasks})

    def _sweep(self, recipes: Mapping[str, MergeRecipe], loaders: Mapping[str, DataLoader]) -> SweepResult:
        found = []
        for kind in dict.fromkeys(recipe.rule.needs for recipe in recipes.values()):
            some = {name: recipe for name, recipe in recipes.items() if recipe.rule.needs == kind}
            options = {"at_once": AT_ONCE, "store": self.options.store, **self._data(kind)}
            found.append(sweep(quiet_trainer(), self.module, some, loaders, **options))
        return joined(found)

    def _data(self, kind: str) -> dict[str, Any]:
        """Return the option of merging that holds what rules need to know of data, where they need some."""
        if not kind:
            return {}
        if kind not in self._statistics:
            collector = CollectDataStatistics(kind, samples=self.options.samples)
            loaders = zoo.loaders("train", self.options.samples, sets=self.tasks)
            quiet_trainer(callbacks=[collector]).validate(self.module, loaders, verbose=False)
            self._statistics[kind] = collector.statistics
        return {"statistics": self._statistics[kind]}


def joined(results: Sequence[SweepResult]) -> SweepResult:
    """Return the candidates of several sweeps on the same samples as those of one.

    Example:
        >>> one, other = (SweepResult((name,), {"id/a": torch.ones(1, 2).bool()}, {}) for name in "ab")
        >>> joined([one, other]).names
        ('a', 'b')
    """
    names = tuple(name for result in results for name in result.names)
    outcomes = {loader: torch.cat([result.outcomes[loader] for result in results]) for loader in results[0].outcomes}
    changes = {name: change for result in results for name, change in result.changes.items()}
    return SweepResult(names, outcomes, {}, changes)
