"""Another program on the same machine: one that keeps a core busy, and how much others took of it meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys
import numpy
values = numpy.ones(1 << 20, dtype=numpy.float32)
print("busy", flush=True)
while os.getppid() == int(sys.argv[1]):
    numpy.sqrt(values, out=values)
"""
"""It ends with whoever started it, also where that one is killed."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class BusyProcess:
    """A process of one thread beside this one, which computes without a pause while a block runs."""

    def __enter__(self) -> BusyProcess:
        command = [sys.executable, "-c", PROGRAM, str(os.getpid())]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | ONE_THREAD)
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            self.__exit__()
            raise RuntimeError("The busy process did not start.")
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class OtherWork:
    """Adds up, over the blocks that run within it, how many cores other programs kept busy on average.

    Attributes:
        seconds: What the blocks took.
        busy: Seconds of all cores that neither were idle nor worked for this process.
    """

    def __init__(self) -> None:
        self.seconds = self.busy = 0.0

    def __enter__(self) -> OtherWork:
        self._before = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        seconds, busy = (after - before for after, before in zip(self._now(), self._before, strict=True))
        self.seconds += seconds
        self.busy += busy

    @property
    def cores(self) -> float:
        # The system counts in steps of 10 ms, so that little work of others may come out below zero.
        return max(0.0, self.busy / self.seconds) if self.seconds else 0.0

    @staticmethod
    def _now() -> tuple[float, float]:
        # The columns: user, nice, system, idle, waiting for a disk, interrupts of two kinds, stolen by other machines.
        columns = [int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in Path("/proc/stat").read_text().split()[1:9]]
        own = os.times()
        return own.elapsed, sum(columns[:3]) + sum(columns[5:]) - own.user - own.system
