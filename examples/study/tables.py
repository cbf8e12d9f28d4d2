"""The two tables of the study, results.csv and comparisons.csv, from what is stored."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import methods
from claims import POOLED, SEEDS
from comparisons import CHOICES, Comparisons, Pair, Points
from measurement import Measurement
from methods import Front, Method
from outcomes import Outcome

REFERENCE = Method("task_arithmetic")
RESULTS = ("zoo", "rule", "variant", "draw", "step", "scale", "change", "chosen", "validation id", "id", "ood")
COMPARISONS = ("zoo", "rule", "variant", "against", "figure", "on", "value", "low", "high", "draws")


@dataclass
class Measured:
    """What is stored of one zoo.

    Attributes:
        zoo: Its name.
        references: Base and experts.
        fronts: Those that are complete.
    """

    zoo: str
    references: Mapping[str, Outcome]
    fronts: dict[str, tuple[Front, Points]] = field(default_factory=dict)

    @classmethod
    def of(cls, measurement: Measurement) -> Measured | None:
        """Collect what is complete; `None` without base and experts."""
        references = measurement.references(run=False)
        if references is None:
            return None
        measured = cls(measurement.subject.name, references)
        for stage in methods.STAGES:
            for front in methods.fronts(stage):
                if points := measurement.of(front, run=False):
                    measured.fronts[front.name] = front, Points(points)
        return measured

    @property
    def domains(self) -> list[str]:
        """The domains that are averaged: ID, OOD, and groups of OOD."""
        groups = dict.fromkeys(
            loader.rpartition("/")[0] for loader in self.references["base"].of("test") if loader.count("/") > 1
        )
        return ["id", "ood", *groups]

    def methods(self) -> dict[Method, list[Points]]:
        """Return the fronts of each method, one a draw of unlabelled images or a random mask."""
        found: dict[Method, list[Points]] = {}
        for front, points in self.fronts.values():
            found.setdefault(front.method, []).append(points)
        return found


def results(measured: Iterable[Measured]) -> str:
    """Return results.csv: a line for every candidate, in percent."""
    zoos = list(measured)
    sets = dict.fromkeys(loader for zoo in zoos for loader in zoo.references["base"].of("test"))
    groups = dict.fromkeys(domain for zoo in zoos for domain in zoo.domains[2:])
    columns = [*RESULTS, *groups, *sets]
    lines = [line for zoo in zoos for line in _lines(zoo)]
    return _csv(columns, lines)


def _lines(zoo: Measured) -> Iterator[dict[str, object]]:
    for name, outcome in zoo.references.items():
        yield {"zoo": zoo.zoo, "rule": name, **_figures(zoo, outcome)}
    for front, points in zoo.fronts.values():
        chosen = {choice: points.chosen(choice) for choice in CHOICES}
        for step, outcome in points.points.items():
            yield {
                "zoo": zoo.zoo,
                "rule": front.rule,
                "variant": front.variant,
                "draw": "" if front.draw is None else front.draw,
                "step": step,
                "scale": outcome.about["scale"],
                "chosen": " and ".join(choice for choice in CHOICES if chosen[choice] == step),
                **_figures(zoo, outcome),
            }


def _figures(zoo: Measured, outcome: Outcome) -> dict[str, object]:
    found: dict[str, object] = {
        "change": f"{float(str(outcome.about['norm'])):.4g}",
        "validation id": f"{100 * outcome.average('validation', 'id/'):.2f}",
    }
    found |= {domain: f"{100 * outcome.average('test', f'{domain}/'):.2f}" for domain in zoo.domains}
    return found | {loader: f"{100 * correct.mean():.2f}" for loader, correct in outcome.of("test").items()}


def comparisons(measured: Iterable[Measured], compare: Comparisons) -> str:
    """Return comparisons.csv: every method against task arithmetic, and against its own rule unpruned, in points."""
    zoos = {zoo.zoo: zoo for zoo in measured}
    groups = {name: [zoo] for name, zoo in zoos.items()}
    if set(SEEDS) <= zoos.keys():
        groups[POOLED] = [zoos[name] for name in SEEDS]
    lines = [line for name, group in groups.items() for line in _compared(name, group, compare)]
    return _csv(list(COMPARISONS), lines)


def _compared(name: str, zoos: list[Measured], compare: Comparisons) -> Iterator[dict[str, object]]:
    known = [zoo.methods() for zoo in zoos]
    for method in known[0]:
        for against in _references(method):
            if not all(method in each and against in each for each in known):
                continue
            pairs = [
                [_pair(zoo, first, each[against][0], against) for first in each[method]]
                for zoo, each in zip(zoos, known, strict=True)
            ]
            domains = zoos[0].domains
            for line in compare.of(pairs, domains[1:], domains):
                yield {
                    "zoo": name,
                    "rule": method.rule,
                    "variant": method.variant,
                    "against": str(against),
                    "figure": line.figure,
                    "on": line.on,
                    **{end: f"{getattr(line, end):.3f}" for end in ("value", "low", "high")},
                    "draws": max(map(len, pairs)),
                }


def _references(method: Method) -> list[Method]:
    """Return what a method is compared with; the reference, for the sake of its choices, with another rule."""
    against = [Method("tsv_m")] if method == REFERENCE else [REFERENCE, Method(method.rule)]
    if method.variant.startswith(("random", "reversed", "gates' mask")):
        against.append(Method(method.rule, f"mean_abs {method.variant.rpartition(' ')[2]}"))
    return [each for each in dict.fromkeys(against) if each != method]


def _pair(zoo: Measured, first: Points, second: Points, against: Method) -> Pair:
    """Return two fronts to compare; masks that were measured at few scales are compared with another at the same."""
    if against.variant.startswith("mean_abs") and first.points.keys() < second.points.keys():
        second = Points({step: second.points[step] for step in first.points})
    return Pair(first, second, zoo.references["base"])


def _csv(columns: list[str], lines: Iterable[Mapping[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
