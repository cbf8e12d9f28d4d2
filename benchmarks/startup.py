"""What a new process pays before it merges: imports, the command's help, and kernels that no cache holds yet."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from cases import Case, Inputs, discard
from inputs import in_fresh_process, progress

BARE = ("-c", "pass")
IMPORT = ("-c", "import lwptv_lightning")
HELP = ("-m", "lwptv_lightning", "--help")
LOADED = "import sys; print(*sys.modules)"
LOADED_AFTER = {
    IMPORT: f"import lwptv_lightning; {LOADED}",
    HELP: f"""
from lwptv_lightning.cli import main
try:
    main(["--help"])
except SystemExit:
    {LOADED}
""",
}
PROCESSES = 15


@dataclass(frozen=True)
class Startup:
    """Figures of new processes.

    Attributes:
        seconds: The median of some processes, by their arguments.
        numba: Whether numba was loaded in the end, by their arguments.
    """

    seconds: Mapping[tuple[str, ...], float]
    numba: Mapping[tuple[str, ...], bool]

    def beyond_bare(self, arguments: tuple[str, ...]) -> float:
        """Return how many times as long a process takes as one of Python that does nothing."""
        return self.seconds[arguments] / self.seconds[BARE]


def measure_startup(processes: int = PROCESSES) -> Startup:
    progress("import lwptv_lightning, lwptv --help")
    seconds: dict[tuple[str, ...], list[float]] = {BARE: [], IMPORT: [], HELP: []}
    for _ in range(processes):
        for arguments, taken in seconds.items():
            began = time.perf_counter()
            _output_of(*arguments)
            taken.append(time.perf_counter() - began)
    numba = {
        arguments: "numba" in _output_of("-c", program).splitlines()[-1].split()
        for arguments, program in LOADED_AFTER.items()
    }
    return Startup({arguments: statistics.median(taken) for arguments, taken in seconds.items()}, numba)


def _output_of(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def compile_seconds(measured: Mapping[str, Case], inputs: Inputs) -> tuple[float, float]:
    """Return what the first runs of all cases in a new process cost beyond later ones.

    It is measured in seconds of the processor, of which other programs take none.

    Returns:
        Where no kernel is in the cache, and where the first process has left them all there.
    """
    with tempfile.TemporaryDirectory() as folder, _environment(NUMBA_CACHE_DIR=folder):
        progress("all cases in a new process, no kernel in the cache")
        cold = in_fresh_process(_first_and_second, measured, inputs, torch.get_num_threads())
        progress("all cases in a new process, kernels in the cache")
        cached = in_fresh_process(_first_and_second, measured, inputs, torch.get_num_threads())
    later = sum(min(cold[name][1], cached[name][1]) for name in measured)
    return sum(first for first, _ in cold.values()) - later, sum(first for first, _ in cached.values()) - later


def _first_and_second(measured: Mapping[str, Case], inputs: Inputs, threads: int) -> dict[str, tuple[float, float]]:
    torch.set_num_threads(threads)
    _ = inputs.vectors
    return {
        name: (_processor_seconds(case, inputs), _processor_seconds(case, inputs)) for name, case in measured.items()
    }


def _processor_seconds(case: Case, inputs: Inputs) -> float:
    began = time.process_time()
    discard(case(inputs))
    return time.process_time() - began


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
