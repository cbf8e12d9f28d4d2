"""Fronts and choices compared in pairs, with bootstraps over samples, draws of unlabelled images, and zoos."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from methods import BOOTSTRAPS
from outcomes import Outcome, key_of

from lwptv_lightning.files import write_whole
from lwptv_lightning.search import Difference, SweepResult, best, compare_fronts, one_standard_error

CHOICES: dict[str, Callable[..., str]] = {"best": best, "one standard error": one_standard_error}
"""How a scale is chosen on the validation samples of the ID sets."""


@dataclass(frozen=True)
class Points:
    """One front of one zoo, by step of its grid."""

    points: Mapping[int, Outcome]

    def result(self, split: str, prefix: str) -> SweepResult:
        """Return the points as candidates, ``<prefix> <step>``."""
        names = {f"{prefix} {step}": outcome for step, outcome in self.points.items()}
        changes = {name: float(str(outcome.about["norm"])) for name, outcome in names.items()}
        return SweepResult(tuple(names), _stacked(names.values(), split), {}, changes)

    def chosen(self, choice: str) -> int:
        """Return the step that is chosen on validation samples of the ID sets."""
        return int(CHOICES[choice](self.result("validation", "at"), "id").removeprefix("at "))

    @property
    def print(self) -> str:
        """What tells these points from others."""
        return key_of([[step, str(outcome.about["key"])] for step, outcome in self.points.items()])


@dataclass(frozen=True)
class Pair:
    """Two fronts of one zoo, the second to subtract; the base is a point of both, that of scale 0."""

    first: Points
    second: Points
    base: Outcome

    @property
    def result(self) -> SweepResult:
        """Return the candidates ``a0``, ``a1``, ... of the first front and ``b0``, ``b1``, ... of the second one.

        There are as many names in every pair, so that pairs are replicates of each other: the last point of a short
        front has several. ``a best`` and the like are the points that are chosen.
        """
        named: dict[str, Outcome] = {"base": self.base}
        for prefix, front in (("a", self.first), ("b", self.second)):
            points = list(front.points.values())
            named |= {f"{prefix}{number}": points[min(number, len(points) - 1)] for number in range(MOST)}
            named |= {f"{prefix} {choice}": front.points[front.chosen(choice)] for choice in CHOICES}
        return SweepResult(tuple(named), _stacked(named.values(), "test"), {})


MOST = 20
"""Points of a front; the grid's limits allow for 16."""
FIRST, SECOND = (["base", *(f"{prefix}{number}" for number in range(MOST))] for prefix in "ab")


@dataclass(frozen=True)
class Compared:
    """One line of comparisons.csv, in points."""

    figure: str
    on: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparisons:
    """Compares pairs; what was compared once is read from a folder.

    Args:
        folder: Where results are kept.
    """

    folder: Path

    def of(self, pairs: Sequence[Sequence[Pair]], domains: Iterable[str], choices: Iterable[str]) -> list[Compared]:
        """Compare pairs of zoos, and in each of draws of unlabelled images.

        Args:
            pairs: Zoo to draw to pair.
            domains: OOD domains on which fronts are compared.
            choices: Domains on which the chosen points are compared.
        """
        domains, choices = list(domains), list(choices)
        prints = [[[pair.first.print, pair.second.print] for pair in draws] for draws in pairs]
        path = self.folder / f"{key_of(prints, domains, choices, BOOTSTRAPS, MOST)}.json"
        if not path.is_file():
            results = [[pair.result for pair in draws] for draws in pairs]
            lines = [*_fronts(results, domains), *_choices(results, choices)]
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps([vars(line) for line in lines]))
        return [Compared(**line) for line in json.loads(path.read_text())]


def _fronts(results: Any, domains: Iterable[str]) -> Iterator[Compared]:
    for domain in domains:
        # Equal to what who tunes the second method gets.
        found = compare_fronts(results, FIRST, SECOND, ood=domain, at="b best", draws=BOOTSTRAPS)
        yield _line("best mean", domain, found.mean)
        yield _line("ID at equal OOD", domain, found.id_at_ood)
        yield _line("OOD at equal ID", domain, found.ood_at_id)
        yield _line("hypervolume", domain, found.hypervolume)


def _choices(results: Any, domains: Iterable[str]) -> Iterator[Compared]:
    pairs = {choice: (f"a {choice}", f"b {choice}") for choice in CHOICES}
    cautious, bold = reversed(CHOICES)
    pairs[f"{cautious} minus {bold}"] = (f"a {cautious}", f"a {bold}")
    for figure, (first, second) in pairs.items():
        for domain in domains:
            # Of a front of one point, the best mean of a domain and itself is its average.
            found = compare_fronts(results, [first], [second], id=domain, ood=domain, draws=BOOTSTRAPS)
            yield _line(figure, domain, found.mean)


def _line(figure: str, domain: str, found: Difference) -> Compared:
    return Compared(figure, domain, *(100 * value for value in (found.value, found.low, found.high)))


def _stacked(outcomes: Iterable[Outcome], split: str) -> dict[str, torch.Tensor]:
    found = [outcome.of(split) for outcome in outcomes]
    return {loader: torch.stack([torch.from_numpy(each[loader]) for each in found]) for loader in found[0]}
