"""How cases are timed in turn, alone and beside a busy process, and how their peaks of memory are taken."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from cases import Case, Inputs, discard, read_every_byte
from inputs import PeakMemory, in_fresh_process, progress
from neighbour import BusyProcess, OtherWork

FLOOR = "read every byte once"


@dataclass(frozen=True)
class Setting:
    """What a case is timed in.

    Attributes:
        threads: Of torch; None is what it has by default.
        crowded: Whether another process keeps one core busy.
    """

    threads: int | None = None
    crowded: bool = False


QUIET, ONE_THREAD, CROWDED = Setting(), Setting(threads=1), Setting(crowded=True)


@dataclass
class Timings:
    """Seconds that were taken.

    Attributes:
        seconds: Of each round, by setting and case.
        first: Of the run before the rounds, by case: kernels are compiled there, or loaded.
        others: What other programs did while cases ran that wanted a quiet machine.
    """

    seconds: dict[tuple[Setting, str], list[float]] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    others: OtherWork = field(default_factory=OtherWork)

    def best(self, name: str, setting: Setting = QUIET) -> float:
        return min(self.seconds[setting, name])

    @property
    def names(self) -> list[str]:
        return [name for setting, name in self.seconds if setting == QUIET]


def time_in_turn(
    measured: Mapping[str, Case], inputs: Inputs, rounds: int, settings: Sequence[Setting] = (QUIET,)
) -> Timings:
    """Time the floor and each case once in every round and setting, after one run that does not count.

    The settings take turns at each case, so that a busy spell of the machine does not hit one alone; those beside a
    busy process come together at the end of a round.
    """
    read_every_byte(inputs)  # so that every file is in the page cache
    measured = {FLOOR: read_every_byte, **measured}
    found = Timings()
    for name, case in measured.items():
        progress(f"first run: {name}")
        found.first[name] = timed(case, inputs)
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        quiet = [setting for setting in settings if not setting.crowded]
        with found.others:
            _time_all(measured, inputs, quiet, found)
        if crowded := [setting for setting in settings if setting.crowded]:
            progress(f"round {number + 1} of {rounds}, beside a busy process")
            with BusyProcess():
                _time_all(measured, inputs, crowded, found)
    return found


def _time_all(measured: Mapping[str, Case], inputs: Inputs, settings: Sequence[Setting], found: Timings) -> None:
    threads = torch.get_num_threads()
    try:
        for name, case in measured.items():
            for setting in settings:
                torch.set_num_threads(setting.threads or threads)
                found.seconds.setdefault((setting, name), []).append(timed(case, inputs))
    finally:
        torch.set_num_threads(threads)


def timed(case: Case, inputs: Inputs) -> float:
    began = time.perf_counter()
    result = case(inputs)
    seconds = time.perf_counter() - began
    discard(result)
    return seconds


def figures(found: Timings, inputs: Inputs) -> list[dict[str, Any]]:
    """Return a row for the floor and for each case."""
    floor = found.best(FLOOR)
    return [
        {
            "what": name,
            "best s": found.best(name),
            "median s": statistics.median(found.seconds[QUIET, name]),
            "GB/s": inputs.nbytes / found.best(name) / 1e9,
            "times floor": found.best(name) / floor,
            "first s": found.first[name],
        }
        for name in found.names
    ]


def peak_beyond(case: Case, inputs: Inputs) -> dict[str, float | None]:
    """Return a case's peak of anonymous memory, what its result takes of it, and what it takes beyond, in MB."""
    peak, result = in_fresh_process(_peak_memory, case, inputs, torch.get_num_threads())
    return {"peak MB": peak / 1e6, "result MB": result / 1e6, "beyond MB": (peak - result) / 1e6}


def _peak_memory(case: Case, inputs: Inputs, threads: int) -> tuple[int, int]:
    """Return the peak of anonymous memory above that at the start, and the bytes of the tensors returned."""
    torch.set_num_threads(threads)
    _ = inputs.vectors  # opened before, as when time is taken
    with PeakMemory() as peak:
        result = case(inputs)
    discard(result)
    tensors = result.values() if isinstance(result, dict) else ()
    return peak.increase, sum(tensor.nbytes for tensor in tensors)
