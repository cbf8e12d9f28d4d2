"""Successive halving: which share of the samples each rung takes, and how many candidates go on from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

ETA = 3
"""Of so many candidates one goes on, to so many times the samples."""
MOST_RUNGS = 4


@dataclass(frozen=True)
class Rung:
    """A step of successive halving.

    Attributes:
        part: The share of the samples, 1 for the last rung.
        candidates: How many are evaluated.
    """

    part: float
    candidates: int


def plan_rungs(candidates: int, evaluations: float, cost: Callable[[float], float]) -> list[Rung]:
    """Return rungs that all candidates fit in, as few as possible; of too many candidates the first take part.

    What the earlier rungs leave of the budget goes to the last one.

    Args:
        candidates: How many there are, at least 1.
        evaluations: What they may cost, each on all samples counting as 1.
        cost: Share of the samples to what an evaluation on it costs.

    Raises:
        ValueError: The budget is too small for any.

    Example:
        >>> [(round(rung.part, 3), rung.candidates) for rung in plan_rungs(90, 40, lambda part: part)]
        [(0.111, 90), (0.333, 30), (1, 20)]
    """
    # Where a set is small, a smaller share of it would be the same samples.
    counts = [2] + [n for n in range(3, MOST_RUNGS + 1) if cost(ETA ** (1 - n)) < cost(ETA ** (2 - n))]
    plans = [_rungs(candidates, count) for count in counts]
    fitting = next((plan for plan in plans if _cost(plan, cost) <= evaluations), None)
    if fitting is None:
        sizes = range(candidates, 0, -1)
        fitting = next((plan for n in sizes if _cost(plan := _rungs(n, counts[-1]), cost) <= evaluations), None)
    if fitting is None:
        raise ValueError(f"a budget of {evaluations:g} evaluations is too small for successive halving.")
    *first, last = fitting
    left = int(evaluations - _cost(first, cost) + 1e-9)
    return [*first, Rung(1, max(last.candidates, min(left, first[-1].candidates)))]


def _rungs(candidates: int, count: int) -> list[Rung]:
    parts = [1 if place == count - 1 else ETA ** (place - count + 1) for place in range(count)]
    return [Rung(part, max(1, math.ceil(candidates / ETA**place))) for place, part in enumerate(parts)]


def _cost(rungs: list[Rung], cost: Callable[[float], float]) -> float:
    return sum(rung.candidates * cost(rung.part) for rung in rungs)
