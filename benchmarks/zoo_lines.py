"""The lines of docs/benchmark.csv: accuracies of the test draw, and differences with intervals."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lwptv_lightning.search import SweepResult

BASE = "base"
CSV = "benchmark.csv"
DOMAINS = {"id": "ID", "ood/near": "near OOD", "ood/far": "far OOD"}
"""What figures are averaged over, in words."""
COMPARED = ("minus task arithmetic", "minus its own")
FINER = "finer minus it"
ENDS = ("", " low", " high")
SIZES = ("test images", "validation images", "samples")
IDENTITY = ("rule", "form", "modifier", "pruned", "tasks")
CHOICE = ("settings", "scale", "validation id")
COLUMNS = (
    *IDENTITY,
    *CHOICE,
    *DOMAINS,
    *(f"{domain} {what}{end}" for what in COMPARED for domain in DOMAINS for end in ENDS),
    *(f"finer {what}" for what in CHOICE),
    *(f"{domain} {FINER}{end}" for domain in DOMAINS for end in ENDS),
    "seconds",
    *SIZES,
)

Line = Mapping[str, str]
"""Column to text, as the file has it; what a row does not have is empty."""


@dataclass(frozen=True)
class Lines:
    """Makes figures of what models got right on the test draw.

    Args:
        result: The models.
        draws: Of the bootstrap.
    """

    result: SweepResult
    draws: int

    def figures(self, name: str, reference: str, own: str = "") -> dict[str, str]:
        """Return a model's accuracies, and by how much they are above those of others, in points."""
        found = self.result.figures(name)
        line = {domain: f"{100 * found[f'{domain}/avg']:.3f}" for domain in DOMAINS}
        for what, other in zip(COMPARED, (reference, own), strict=True):
            if other not in ("", name):
                line |= self.compared(what, name, other)
        return line

    def compared(self, what: str, name: str, other: str) -> dict[str, str]:
        """Return a paired difference on each domain, with its interval of 95 %."""
        line = {}
        for domain in DOMAINS:
            found = self.result.difference(name, other, domain, draws=self.draws)
            ends = zip(ENDS, (found.value, found.low, found.high), strict=True)
            line |= {f"{domain} {what}{end}": f"{100 * value:.3f}" for end, value in ends}
        return line


def read(folder: Path, sizes: Mapping[str, str]) -> list[Line]:
    """Return the lines that are there, of as many images; none where there is no file."""
    file = folder / CSV
    if not file.is_file():
        return []
    with file.open(newline="") as opened:
        reader = csv.DictReader(opened)
        if absent := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
            raise SystemExit(f"{file} has no column {absent[0]!r}: measure all rules, without --rules.")
        lines = list(reader)
    for line in lines:
        for what, size in sizes.items():
            if line[what] != size:
                raise SystemExit(
                    f"{file} has figures of {line[what]} {what}, not {size}: measure all, without --rules."
                )
    return lines


def renewed(kept: Iterable[Line], measured: Iterable[Line], rules: Iterable[str]) -> list[Line]:
    """Return lines of which those of some rules, and all that were measured, are new; in the order of the file."""
    rules = set(rules)
    found = {identity(line): line for line in kept if line["rule"] not in rules}
    found |= {identity(line): line for line in measured}
    return [found[each] for each in sorted(found, key=lambda each: (each[0] != BASE, each[2], each))]


def identity(line: Line) -> tuple[str, ...]:
    return tuple(line[name] for name in IDENTITY)


def write(lines: Iterable[Line], folder: Path) -> None:
    """Write the file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / CSV).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(lines)
