"""Chooses, for each row, its hyper-parameters and its coefficient on the validation draw of the ID sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from zoo_rows import Row, Settings

from lwptv_lightning import MergeRecipe
from lwptv_lightning.search import SweepResult, best

Measure = Callable[[Mapping[str, MergeRecipe]], SweepResult]
"""Evaluates recipes on the validation draw."""

OCTAVE = 8
LIMITS = (-5 * OCTAVE, 4 * OCTAVE)
CLOSE = 0.01
"""Hyper-parameters are tried at more coefficients where they come so near to the best ones of a row."""


class Point(NamedTuple):
    """Hyper-parameters, and a coefficient in eighths of an octave above the usual one."""

    settings: Settings
    step: int

    @property
    def factor(self) -> float:
        return 2 ** (self.step / OCTAVE)


@dataclass(frozen=True)
class Grid:
    """Which coefficients are tried: octaves, then halves and quarters of them around the best.

    Attributes:
        coarse: Steps that every choice of hyper-parameters is tried at; where the best one stands at an end, the next
            octave follows.
        reaches: How far from the best further steps lie, in turn.
        finer: Steps around the chosen one, to see whether a finer grid would matter.
    """

    coarse: tuple[int, ...] = (-OCTAVE, 0)
    reaches: tuple[int, ...] = (OCTAVE // 2, OCTAVE // 4)
    finer: tuple[int, ...] = (-1, 1)


@dataclass
class Tuned:
    """What was measured of a row.

    Attributes:
        row: The row.
        outcomes: Point to what was right, by loader, and the norm of the change from the base.
    """

    row: Row
    outcomes: dict[Point, tuple[dict[str, torch.Tensor], float]] = field(default_factory=dict)

    @property
    def averages(self) -> dict[Point, float]:
        """The validation ID averages."""
        result = self.result
        return {point: result.figures(str(number))["id/avg"] for number, point in enumerate(self.outcomes)}

    @property
    def result(self) -> SweepResult:
        """The points as candidates, by their numbers."""
        found = list(self.outcomes.values())
        names = tuple(map(str, range(len(found))))
        outcomes = {loader: torch.stack([each[0][loader] for each in found]) for loader in found[0][0]}
        return SweepResult(names, outcomes, {}, {name: each[1] for name, each in zip(names, found, strict=True)})

    @property
    def chosen(self) -> Point:
        """The point with the highest validation ID average; of several, the one nearest to the base."""
        return list(self.outcomes)[int(best(self.result))]

    @property
    def recipe(self) -> MergeRecipe:
        """The recipe of that point."""
        return self.row.recipe(self.chosen.settings, self.chosen.factor)


def tune(measure: Measure, rows: Iterable[Row], grid: Grid, told: Callable[[str], object] = print) -> dict[Row, Tuned]:
    """Measure rows on validation samples, round by round, until none wants to know more."""
    found = {row: Tuned(row) for row in rows}
    while wanted := {row: points for row, tuned in found.items() if (points := next_points(tuned, grid))}:
        told(f"{sum(map(len, wanted.values()))} models of {len(wanted)} rows on the validation draw")
        _measure(measure, found, wanted)
    return found


def refine(
    measure: Measure, found: Mapping[Row, Tuned], grid: Grid, told: Callable[[str], object] = print
) -> dict[Row, Tuned]:
    """Return the rows with what a grid twice as fine has around their choices."""
    finer = {row: Tuned(row, dict(tuned.outcomes)) for row, tuned in found.items()}
    wanted = {row: list(finer_points(tuned, grid)) for row, tuned in finer.items()}
    told(f"{sum(map(len, wanted.values()))} models around the choices of {len(wanted)} rows")
    _measure(measure, finer, wanted)
    return finer


def _measure(measure: Measure, found: Mapping[Row, Tuned], wanted: Mapping[Row, Iterable[Point]]) -> None:
    asked = {f"{row.name} {number}": (row, point) for row in wanted for number, point in enumerate(wanted[row])}
    result = measure({name: row.recipe(point.settings, point.factor) for name, (row, point) in asked.items()})
    for name, (row, point) in asked.items():
        found[row].outcomes[point] = result.correct(name), result.changes[name]


def next_points(tuned: Tuned, grid: Grid) -> list[Point]:
    """Return which points are to be measured, given those that were."""
    settings = tuned.row.settings
    known = tuned.outcomes
    if missing := [Point(each, step) for each in settings for step in grid.coarse if Point(each, step) not in known]:
        return missing
    averages = tuned.averages if grid.reaches else {}
    own = {
        each: {point.step: value for point, value in averages.items() if point.settings == each} for each in settings
    }
    if grid.reaches and (beyond := [point for each in settings for point in _beyond(each, own[each])]):
        return beyond
    top = max(averages.values(), default=0.0)
    for reach in grid.reaches:
        # The last reach is for the best hyper-parameters alone.
        near = top if reach == grid.reaches[-1] else top - CLOSE
        around = [
            Point(each, _best(own[each], 2 * reach) + way)
            for each in settings
            if max(own[each].values()) >= near
            for way in (-reach, reach)
        ]
        if missing := [point for point in around if point not in known]:
            return missing
    return []


def _beyond(settings: Settings, own: Mapping[int, float]) -> Iterator[Point]:
    """Yield the next octave where the best one stands at an end."""
    octaves = {step: value for step, value in own.items() if step % OCTAVE == 0}
    top = _best(own, OCTAVE)
    for end, way in ((min(octaves), -OCTAVE), (max(octaves), OCTAVE)):
        if top == end and LIMITS[0] <= end + way <= LIMITS[1]:
            yield Point(settings, end + way)


def _best(own: Mapping[int, float], multiple: int) -> int:
    """Return the best step among the multiples of some number."""
    return max((step for step in own if step % multiple == 0), key=lambda step: own[step])


def finer_points(tuned: Tuned, grid: Grid) -> Iterator[Point]:
    """Yield the points between a choice and its neighbours, in coefficient and in hyper-parameters."""
    settings, step = tuned.chosen
    for way in grid.finer:
        yield Point(settings, step + way)
    for place, value in settings:
        for between in _between(value, tuned.row.grid[place]):
            other = tuple((name, between if name == place else usual) for name, usual in settings)
            if _is_valid(tuned.row, other):
                yield Point(other, step)


def _between(value: Any, values: tuple[Any, ...]) -> Iterator[float]:
    """Yield the geometric means of a number and its neighbours, and as far beyond an end."""
    numbers = sorted(each for each in values if isinstance(each, float) and each > 0)
    if value not in numbers or len(numbers) < 2:
        return
    ratios = [high / low for low, high in pairwise(numbers)]
    place = numbers.index(value)
    yield float(f"{value / math.sqrt(ratios[max(place - 1, 0)]):.3g}")
    yield float(f"{value * math.sqrt(ratios[min(place, len(ratios) - 1)]):.3g}")


def _is_valid(row: Row, settings: Settings) -> bool:
    try:
        row.recipe(settings)
    except ValueError:
        return False
    return True
