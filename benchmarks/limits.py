"""Limits that the engine is to keep, and whether figures keep them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cases import file_to_file, half_pruned
from reference import Reference
from startup import HELP, IMPORT, Startup
from timing import CROWDED, FLOOR, ONE_THREAD, QUIET, Setting, Timings

from lwptv_lightning.registry import parse_bytes

TIMES_FLOOR = {
    "statistics": 4.0,
    "task_arithmetic": 4.0,
    "ties": 8.0,
    "dare_ties": 10.0,
    "breadcrumbs": 8.0,
    "consensus_ta": 8.0,
    file_to_file("task_arithmetic"): 4.0,
    file_to_file("ties"): 9.0,
}
"""Best times on a quiet machine, in that of reading every input byte once."""
TIMES_ONE_THREAD = 1.1
TIMES_QUIET = 2.5
TIMES_FASTER_THAN_REFERENCE = 50.0
BEYOND_MB = 250.0
GROWTH_MB = 50.0
"""What most tasks may take beyond fewest; the C library keeps freed memory, so that no two peaks are the same."""
TIMES_BARE = {IMPORT: 1.45, HELP: 4.2}
"""Times of a Python process that does nothing. Before there were kernels, these were 1.3 and 3.8."""


@dataclass(frozen=True)
class Limit:
    """A bound, and what was measured.

    Attributes:
        what: What is bound.
        bound: The highest value that keeps it; with ``at_least`` the lowest.
        measured: The value found.
        unit: Of both, for the table.
        at_least: Whether more is better.
    """

    what: str
    bound: float
    measured: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def row(self) -> dict[str, object]:
        return {
            "what": self.what,
            "limit": f"{'>=' if self.at_least else '<='} {self.bound:g} {self.unit}".rstrip(),
            "measured": self.measured,
            "verdict": "met" if self.met else "NOT MET",
        }


def of_times(found: Timings) -> Iterator[Limit]:
    """Compare with the floor, with one thread, and with a quiet machine."""
    floor = found.best(FLOOR)
    for name, bound in TIMES_FLOOR.items():
        if name in found.names:
            yield Limit(f"quiet: {name}", bound, found.best(name) / floor, "x floor")
    for what, setting, other, bound, unit in (
        ("default threads", QUIET, ONE_THREAD, TIMES_ONE_THREAD, "x one thread"),
        ("beside a busy process", CROWDED, QUIET, TIMES_QUIET, "x quiet"),
    ):
        for name in found.names:
            if name != FLOOR:
                yield Limit(f"{what}: {name}", bound, _ratio(found, name, setting, other), unit)


def _ratio(found: Timings, name: str, setting: Setting, other: Setting) -> float:
    return found.best(name, setting) / found.best(name, other)


def of_pruning(found: Timings, rules: Sequence[str]) -> Iterator[Limit]:
    """Compare half of the layers pruned with the whole merge and the statistics that pruning needs."""
    for rule in rules:
        allowed = found.best(rule) + found.best("statistics")
        ratio = found.best(half_pruned(rule)) / allowed
        yield Limit(half_pruned(rule), 1.0, ratio, "x (unpruned + statistics)")


def of_reads(reads: Mapping[str, int]) -> Iterator[Limit]:
    """No expert is read where nothing of it is kept; where all is kept, the count must see it."""
    yield Limit("none pruned: experts' tensors read", 1, reads["unpruned"], "", at_least=True)
    yield Limit("all pruned by a mask: experts' tensors read", 0, reads["masked"], "")
    yield Limit("all pruned by a ratio of 1: experts' tensors read", 0, reads["ratio 1"], "")


def of_reference(found: Timings, reference: Reference) -> Iterator[Limit]:
    """Compare with the published way of TIES."""
    faster = min(reference.seconds) / found.best("ties")
    yield Limit("ties: faster than the reference algorithm", TIMES_FASTER_THAN_REFERENCE, faster, "x", at_least=True)
    yield Limit(
        f"ties: weights unlike the reference's, the largest difference {reference.difference:.2g}",
        0,
        float(not reference.equal),
        "",
    )


def of_memory(beyond: Mapping[str, Mapping[int, float]], kept: Mapping[tuple[str, str], float]) -> Iterator[Limit]:
    """Bound what is held beyond the result.

    Args:
        beyond: By case and number of tasks, in MB.
        kept: By case and ``max_memory``, in MB, what was held beyond the result.
    """
    for name, by_tasks in beyond.items():
        tasks = sorted(by_tasks)
        among = " or ".join(map(str, tasks))
        yield Limit(f"memory beyond the result: {name}, {among} tasks", BEYOND_MB, max(by_tasks.values()), "MB")
        if len(tasks) > 1:
            growth = by_tasks[tasks[-1]] - by_tasks[tasks[0]]
            yield Limit(f"the same, {tasks[-1]} tasks minus {tasks[0]}", GROWTH_MB, growth, "MB")
    for (name, limit), used in kept.items():
        yield Limit(f"max_memory={limit!r}: {name}", parse_bytes("max_memory", limit) / 1e6, used, "MB")


def of_startup(startup: Startup) -> Iterator[Limit]:
    """No process loads kernels that it does not need."""
    for arguments, bound in TIMES_BARE.items():
        command = "import lwptv_lightning" if arguments == IMPORT else "lwptv --help"
        ratio = startup.beyond_bare(arguments)
        yield Limit(f"{command}, {1e3 * startup.seconds[arguments]:.0f} ms", bound, ratio, "x a bare python")
        yield Limit(f"{command}: numba loaded", 0, float(startup.numba[arguments]), "")


def of_language_models(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Limit]:
    """Merges of models of several GB keep ``max_memory``, and are what plain torch finds."""
    for script, rows in found.items():
        for row in rows:
            if row["limit"]:
                limit = parse_bytes("max_memory", row["limit"]) / 1e6
                yield Limit(f"{script}: {row['what']}, memory", limit, row["peak MB"], "MB")
                yield Limit(f"{script}: {row['what']}, elements that differ", 0, row["differing"], "")
