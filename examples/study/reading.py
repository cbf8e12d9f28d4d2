"""The study's tables as they were committed; page and pictures are made from them alone."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from methods import Method

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Difference:
    """A difference in points with its interval; nan where a front does not reach what is to be equal."""

    value: float
    low: float
    high: float
    draws: int

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "not reached"
        value, low, high = (round(end, 1) + 0.0 for end in (self.value, self.low, self.high))  # no zero with a minus
        if math.isinf(low):
            return f"{value:+.1f}, not reached in some draws"
        return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


@dataclass(frozen=True)
class Tables:
    """Both tables, line by line.

    Args:
        results: Lines of results.csv.
        comparisons: Lines of comparisons.csv.
    """

    results: list[dict[str, str]]
    comparisons: list[dict[str, str]]

    @classmethod
    def read(cls, folder: Path = RESULTS) -> Tables:
        """Read both from a folder."""
        return cls(*(_read(folder / f"{name}.csv") for name in ("results", "comparisons")))

    @cached_property
    def zoos(self) -> list[str]:
        """The zoos that were measured, in order."""
        return list(dict.fromkeys(row["zoo"] for row in self.results))

    @cached_property
    def methods(self) -> dict[str, list[Method]]:
        """Zoo to the methods that were measured there."""
        found: dict[str, dict[Method, None]] = {zoo: {} for zoo in self.zoos}
        for row in self.results:
            if row["variant"]:
                found[row["zoo"]][Method.of(row["rule"], row["variant"])] = None
        return {zoo: list(methods) for zoo, methods in found.items()}

    def groups(self, zoo: str) -> list[str]:
        """Return the columns of a zoo's averages: ``id``, and the groups of OOD sets."""
        row = next(row for row in self.results if row["zoo"] == zoo)
        names = [name for name in row if name.startswith("ood/") and name.count("/") == 1]
        return ["id", *(name for name in names if row[name])]

    def of(self, zoo: str, method: Method) -> list[dict[str, str]]:
        """Return all lines of a method, whatever the draw or the random mask."""
        return self._lines.get((zoo, method), [])

    def single(self, zoo: str, name: str) -> dict[str, str]:
        """Return the line of the base or of an expert."""
        return next(row for row in self.results if (row["zoo"], row["rule"], row["variant"]) == (zoo, name, ""))

    def experts(self, zoo: str) -> list[dict[str, str]]:
        """Return the lines of the experts."""
        return [row for row in self.results if row["zoo"] == zoo and row["rule"].startswith("expert ")]

    def published(self, zoo: str, method: Method) -> list[dict[str, str]]:
        """Return a method's lines at its own scale, one a draw or mask."""
        return [row for row in self.of(zoo, method) if row["step"] == "0"]

    def chosen(self, zoo: str, method: Method, choice: str) -> list[dict[str, str]]:
        """Return the lines that a choice takes, one a draw or mask."""
        return [row for row in self.of(zoo, method) if choice in row["chosen"].split(" and ")]

    def difference(self, zoo: str, method: Method, against: Method, figure: str, on: str) -> Difference | None:
        """Return a difference; `None` where it was not measured."""
        row = self._compared.get((zoo, method, str(against), figure, on))
        if row is None:
            return None
        return Difference(float(row["value"]), float(row["low"]), float(row["high"]), int(row["draws"]))

    @cached_property
    def _lines(self) -> dict[tuple[str, Method], list[dict[str, str]]]:
        found: dict[tuple[str, Method], list[dict[str, str]]] = {}
        for row in self.results:
            found.setdefault((row["zoo"], Method.of(row["rule"], row["variant"])), []).append(row)
        return found

    @cached_property
    def _compared(self) -> dict[tuple[str, Method, str, str, str], dict[str, str]]:
        return {
            (row["zoo"], Method(row["rule"], row["variant"]), row["against"], row["figure"], row["on"]): row
            for row in self.comparisons
        }


def mean(rows: Iterable[dict[str, str]], column: str) -> float:
    """Return the mean of a column."""
    values = [float(row[column]) for row in rows]
    return sum(values) / len(values)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
