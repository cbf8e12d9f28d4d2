"""`Asked`: a sweep's candidates, from what was asked for to what was found of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lwptv_lightning.evaluation import MergeModule, on_rank_zero
from lwptv_lightning.merging import require_divisible
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import Advance, UnknownNameError, Watcher, require_known
from lwptv_lightning.search.gates import Gates, require_learnable
from lwptv_lightning.search.keys import Keys
from lwptv_lightning.search.passes import CandidatesModule, Passes
from lwptv_lightning.search.samples import Samples
from lwptv_lightning.search.store import Found, Store
from lwptv_lightning.search.weights import Candidate, Made, Weights, as_recipe, holds_data, is_weights


@dataclass
class Asked:
    """A sweep: what its candidates are measured on, and how.

    Attributes:
        options: Those of merging.
        passes: The loaders that are reported on.
        samples: What may be looked at before.
        recalibrate: Whether running statistics are measured anew.
        keys: What decides, where there is a store.
        store: What was measured before; ``None`` for none.
    """

    trainer: Trainer
    module: MergeModule
    options: Mapping[str, Any]
    passes: Passes
    samples: Samples
    recalibrate: bool
    keys: Keys | None = None
    store: Store | None = None
    _about: dict[str, dict[str, Any]] = field(default_factory=dict)

    def required(self, candidates: Mapping[str, Candidate]) -> dict[str, Candidate]:
        """Return candidates as recipes, gates and weights; refuse, before anything is run, what cannot be measured."""
        if self.recalibrate and not self.samples:
            raise ValueError("recalibrate=True measures running statistics on samples=..., and none are given.")
        wanted: dict[str, Candidate] = {}
        for name, candidate in candidates.items():
            if is_weights(candidate):
                with _naming(name):
                    self._weights.require_known(candidate)
                wanted[name] = candidate
            elif isinstance(candidate, Gates):
                self._require_gates(name, candidate)
                wanted[name] = candidate
            else:
                with _naming(name):
                    wanted[name] = recipe = as_recipe(candidate, self.options)
                self._require_recipe(name, recipe)
        return wanted

    def _require_gates(self, name: str, gates: Gates) -> None:
        if not self.samples:
            raise ValueError(f"candidate {name!r}: gates are learnt on samples=..., and none are given.")
        with _naming(name):
            require_learnable(self.trainer)
            gates.of(self.module)
            gates.loaders(self.module, self.samples.given)

    def _require_recipe(self, name: str, recipe: MergeRecipe) -> None:
        with _naming(name):
            tasks = self.module.vectors.tasks
            if recipe.task is not None:
                require_known("task", recipe.task, tasks)
            require_divisible(recipe, self.module.vectors)
        kind = recipe.rule.needs
        if not kind or holds_data(self.options):
            return
        if not self.samples:
            raise ValueError(
                f"candidate {name!r}: rule {recipe.rule.name!r} needs its {kind} on each task's data; give samples=... "
                "to collect it on, or what was collected as statistics=..."
            )
        with _naming(name):
            self.samples.require_for(kind)

    def learnt(self, wanted: Mapping[str, Candidate], watcher: Watcher) -> dict[str, Candidate]:
        """Return candidates with recipes in the place of gates, which are learnt once for all scales."""
        known: dict[str, MergeRecipe] = {}
        found: dict[str, Candidate] = {}
        several = {name: each for name, each in wanted.items() if isinstance(each, Gates)}
        with watcher("Learning gates", len(several)) as advance:
            for name, candidate in wanted.items():
                found[name] = candidate
                if isinstance(candidate, Gates):
                    key = str(sorted(candidate.key(self.module).items()))
                    if key not in known:
                        known[key] = self._learnt(candidate)
                    found[name] = candidate.scaled(known[key])
                    advance()
        return found

    def _learnt(self, gates: Gates) -> MergeRecipe:
        def learn() -> MergeRecipe:
            return gates.learn(self.trainer, self.module, self.samples.given)

        if self.store is None or self.keys is None:
            return learn()
        store, loaders = self.store, gates.loaders(self.module, self.samples.given)
        about = self.keys.of_gates(gates, self.module, loaders, self.samples.digest)
        plain = on_rank_zero(self.trainer, lambda: store.recall(about))
        if plain is None:
            plain = learn().to_dict()
            on_rank_zero(self.trainer, lambda: store.remember(about, plain))
        return MergeRecipe.from_dict(plain)

    def stored(self, wanted: Mapping[str, Candidate]) -> dict[str, Found]:
        """Return what was measured before, on the same data."""
        store = self.store
        if store is None or self.keys is None:
            return {}
        self._about = {name: self._decides(candidate) for name, candidate in wanted.items()}
        if self.trainer.world_size == 1 and not any(map(store.has, self._about.values())):
            return {}  # the first pass will tell what the data are
        self.passes.run(self.trainer, CandidatesModule(self.module, self.passes, []))
        data = self.passes.digests

        def find() -> dict[str, Found]:
            found = {name: store.find(about, data) for name, about in self._about.items()}
            return {name: each for name, each in found.items() if each is not None}

        there: dict[str, Found] = on_rank_zero(self.trainer, find)
        return there

    def _decides(self, candidate: Candidate) -> dict[str, Any]:
        assert self.keys is not None
        if is_weights(candidate):
            return self.keys.of_weights(candidate)
        recipe = as_recipe(candidate)
        looks = self.recalibrate or (bool(recipe.rule.needs) and not holds_data(self.options))
        return self.keys.of_recipe(recipe, self.samples.digest if looks else None, recalibrated=self.recalibrate)

    def measured(self, missing: Mapping[str, Candidate], at_once: int, advance: Advance) -> dict[str, Found]:
        """Measure candidates, as many at once as may be in memory, and keep what was found of each."""
        found: dict[str, Found] = {}
        made = self._weights.of(missing)
        while some := list(islice(made, at_once)):
            step = CandidatesModule(
                self.module,
                self.passes,
                [each.tensors for each in some],
                measure=self._measure(missing, some) if self.recalibrate else None,
                advance=advance,
            )
            self.passes.run(self.trainer, step)
            new = {each.name: _found(each, step.outcomes, row) for row, each in enumerate(some)}
            self._keep(new)
            found |= new
        return found

    def _measure(self, missing: Mapping[str, Candidate], some: Sequence[Made]) -> Callable[..., None]:
        def measure(trainer: Trainer, weights: Sequence[dict[str, Tensor]]) -> None:
            merged = [own for own, each in zip(weights, some, strict=True) if not is_weights(missing[each.name])]
            self.samples.measure_norms_(trainer, merged)

        return measure

    def _keep(self, new: Mapping[str, Found]) -> None:
        store, data = self.store, self.passes.digests
        if store is not None:

            def keep() -> None:
                for name, found in new.items():
                    store.keep(self._about[name], data, found)

            on_rank_zero(self.trainer, keep)

    @property
    def _weights(self) -> Weights:
        return Weights(self.module, self.trainer.strategy.root_device, self.options, self.samples.statistics)

    def steps_of(self, missing: Mapping[str, Candidate]) -> int | None:
        """Return how many batches all candidates together will see; ``None`` where that is not known."""
        try:
            return len(missing) * sum(len(loader) for loader in self.passes.given.values())
        except (TypeError, NotImplementedError):
            return None


def _found(made: Made, outcomes: Mapping[str, Tensor], row: int) -> Found:
    return Found({name: each[row].clone() for name, each in outcomes.items()}, made.seconds, made.change)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Let an error of a value say which candidate it is of."""
    try:
        yield
    except UnknownNameError as error:
        error.message = f"candidate {name!r}: {error.message}"
        raise
    except ValueError as error:
        raise ValueError(f"candidate {name!r}: {error}") from error
