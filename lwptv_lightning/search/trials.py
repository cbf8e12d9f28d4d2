"""Candidates evaluated on shares of the validation samples, within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lwptv_lightning.search.budget import Budget
from lwptv_lightning.search.compare import SweepResult
from lwptv_lightning.search.portions import Shares
from lwptv_lightning.search.weights import Candidate


@dataclass(frozen=True)
class Entry:
    """A candidate of a search, and where it is in the space.

    Attributes:
        candidate: What to evaluate.
        rule: The rule and what stands beside it, with their hyper-parameters.
        pruning: Score and ratio, or what is learnt; empty where nothing is pruned.
        scale: The coefficient.
        twin: The name of the candidate that prunes nothing and is the same besides, where that is another one.
    """

    candidate: Candidate
    rule: str
    pruning: str
    scale: float
    twin: str | None = None


@dataclass
class Trials:
    """Evaluates candidates of a pool, each once on each share, and counts what that takes.

    Args:
        pool: Name to candidate, in the order of their worth.
        evaluate: Evaluates some candidates on some loaders.
        shares: The validation samples.
        budget: What all may take.
        at_once: How many candidates are evaluated before it is looked whether the time is over.
        agreed: Gives all processes what a function returns on the first one.
        pace: Seconds of an evaluation, where an earlier run measured them.
        clock: Tells the time in seconds.
    """

    pool: Mapping[str, Entry]
    evaluate: Callable[[Mapping[str, Candidate], Mapping[str, Any]], SweepResult]
    shares: Shares
    budget: Budget
    at_once: int = 16
    agreed: Callable[[Callable[[], Any]], Any] = lambda action: action()
    pace: float | None = None
    clock: Callable[[], float] = time.monotonic
    spent: float = field(default=0.0, init=False)
    _found: dict[float, SweepResult] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._began = self.clock()

    @property
    def whole(self) -> SweepResult:
        """What was found on all samples."""
        return self._found[1.0]

    @property
    def left(self) -> float:
        """How many evaluations the budget holds yet; for a time, as many as there would be at the pace so far."""
        if self.budget.evaluations is not None:
            return self.budget.evaluations - self.spent
        if self.pace is None:
            return float("inf")
        return max(0.0, self.seconds_left / self.pace)

    @property
    def seconds_left(self) -> float:
        """How many seconds are left, the same on all processes; infinite where evaluations count."""
        if self.budget.seconds is None:
            return float("inf")
        seconds, began = self.budget.seconds, self._began
        return float(self.agreed(lambda: began + seconds - self.clock()))

    def known(self, part: float = 1.0) -> tuple[str, ...]:
        """Return the names of what was evaluated on a share."""
        return self._found[part].names if part in self._found else ()

    @property
    def tried(self) -> tuple[str, ...]:
        """The names of what was evaluated on any share."""
        return tuple(dict.fromkeys(name for found in self._found.values() for name in found.names))

    def run(self, names: Iterable[str], part: float = 1.0, *, reserve: float = 0.0, always: bool = False) -> list[str]:
        """Evaluate candidates on a share, those that are not yet, and return which ones are.

        Args:
            names: Of the pool.
            part: The share of the samples.
            reserve: For how many whole evaluations to leave time.
            always: Whether to do so also where the time is over.
        """
        names = list(dict.fromkeys(names))
        wanted = [name for name in names if name not in self.known(part)]
        # All together, where no time counts: so they share most of their work.
        size = self.at_once if self.budget.seconds is not None and not always else max(1, len(wanted))
        for first in range(0, len(wanted), size):
            if not always and self.seconds_left <= reserve * (self.pace or 0.0):
                break
            self._evaluate(wanted[first : first + size], part)
        return [name for name in names if name in self.known(part)]

    def _evaluate(self, names: Sequence[str], part: float) -> None:
        began = self.clock()
        found = self.evaluate({name: self.pool[name].candidate for name in names}, self.shares.loaders(part))
        self._found[part] = joined([self._found[part], found]) if part in self._found else found
        self.spent += len(names) * self.shares.cost(part)
        if part == 1.0 and self.pace is None and len(names) > 1:
            taken, number = self.clock() - began, len(names)
            self.pace = float(self.agreed(lambda: max(taken / number, 1e-4)))

    def ranked(self, names: Iterable[str], part: float) -> list[str]:
        """Return names from the best ID average on a share to the worst; of equal ones the nearest to the base first.

        Which is best is told by whole numbers where all sets count alike, so that no rounding decides.
        """
        result = self._found[part]
        figures = {name: round(result.figures(name)["id/avg"], 12) for name in names}
        return sorted(figures, key=lambda name: (-figures[name], result.changes.get(name, float("inf"))))

    def with_twins(self, names: Iterable[str]) -> list[str]:
        """Return names, before each one that of what prunes nothing and is the same besides."""
        found: dict[str, None] = {}
        for name in names:
            twin = self.pool[name].twin
            found |= {} if twin is None or twin not in self.pool else {twin: None}
            found[name] = None
        return list(found)


def joined(results: Sequence[SweepResult]) -> SweepResult:
    """Return what several sweeps over the same samples found as that of one.

    Example:
        >>> one = SweepResult(("a",), {"id/x": torch.tensor([[True, False]])}, {"a": 1.0})
        >>> both = joined([one, SweepResult(("b",), {"id/x": torch.tensor([[True, True]])}, {"b": 2.0})])
        >>> both.names, both.figures("b")["id/x"], both.seconds
        (('a', 'b'), 1.0, {'a': 1.0, 'b': 2.0})
    """
    first = results[0]
    outcomes = {loader: torch.cat([each.outcomes[loader] for each in results]) for loader in first.outcomes}
    merged: dict[str, Any] = {}
    for name in ("seconds", "changes", "recipes"):
        merged[name] = {key: value for each in results for key, value in getattr(each, name).items()}
    names = tuple(name for each in results for name in each.names)
    return replace(first, names=names, outcomes=outcomes, **merged)
