"""Starts a test file as several processes, each of which writes what it found to a file."""

import contextlib
import faulthandler
import functools
import json
import multiprocessing.forkserver
import os
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from _helpers.entry_points import remembered

ROOT = Path(__file__).parents[2]
OF_A_GROUP = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment():
    """The environment of processes that import this checkout, use one thread each and belong to no other group."""
    kept = {name: value for name, value in os.environ.items() if name not in OF_A_GROUP}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), kept.get("PYTHONPATH", "")])
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def launch(script, folder, *arguments, ranks):
    """Run ``script folder *arguments`` as torchrun would, and return what each process left in ``<rank>.json``."""
    own = [{"WORLD_SIZE": str(ranks), "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    run_together([str(script), str(folder), *arguments], own)
    return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]


def run_script(script, folder, *arguments):
    """Run ``script folder *arguments`` as one process, which starts the others itself."""
    run_together([str(script), str(folder), *arguments], [{}])
    return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]


def report(folder, rank, found):
    """Write what a process found, under a final name only when complete."""
    path = Path(folder) / f"{rank}.json"
    path.with_suffix(".tmp").write_text(json.dumps(found))
    path.with_suffix(".tmp").replace(path)


def run_together(command, own, idle=120, work=600):
    """Run a script with arguments once for each of some variables; all end as soon as one fails, or where they hang.

    That is where they use no processor for ``idle`` seconds, or have used it for ``work``: beside many other programs
    they may well take minutes, and yet get on.

    Raises:
        AssertionError: what each has said, and of those that did not end by themselves where each thread was.
    """
    with tempfile.TemporaryDirectory() as folder, _rendezvous() as store:
        # Files do not fill up, as pipes do while one process waits for another whose pipe is being read.
        said = [Path(folder) / str(rank) for rank in range(len(own))]
        started = [
            _server().Process(target=_run, args=(command, environment() | store | variables, file))
            for variables, file in zip(own, said, strict=True)
        ]
        try:
            for process in started:
                process.start()
            hang = _hang([process.pid for process in started], idle, work)
            while None in (codes := [process.exitcode for process in started]):
                if any(codes) or next(hang):
                    break
                time.sleep(0.02)
        finally:
            _end(started)
        assert codes == [0] * len(own), "\n".join(map(_told, range(len(own)), codes, said))


def _hang(groups, idle, work):
    """Yield whether groups of processes hang, whenever asked."""
    used, moved, looked = 0.0, time.monotonic(), time.monotonic()
    while True:
        now = time.monotonic()
        if now - looked > 1:
            found, looked = _processor_time(groups), now
            if found > used + 0.1:
                used, moved = found, now
        yield now - moved > idle or used > work


def _processor_time(groups):
    """The seconds of a processor that groups of processes have used; 0 where the system does not tell."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # of one that has ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15])) if int(fields[2]) in groups else 0
    return ticks / os.sysconf("SC_CLK_TCK")


@functools.cache
def _server():
    """The process that the others begin as a copy of, since it takes 6 s to import all this."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "lightning.pytorch", "torch.distributed.fsdp", "timm"])
    with mock.patch.dict(os.environ, environment(), clear=True):
        multiprocessing.forkserver.ensure_running()
    return context


def _run(command, variables, file):
    """Be the process of a script: with its environment, its output, its arguments, and a group for its children."""
    os.setpgid(0, 0)
    output = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    faulthandler.enable()
    os.environ.clear()
    # At the signal of _end all threads' stacks are written, in children that Lightning starts too.
    os.environ |= variables | {"PYTHONFAULTHANDLER": "1"}
    sys.argv = command
    multiprocessing.set_start_method(None, force=True)  # that of any process, for the workers of loaders
    with remembered():
        runpy.run_path(command[0], run_name="__main__")


@contextlib.contextmanager
def _rendezvous():
    """Yield the variables of a store that this process holds, so that no other takes the port before a first rank."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}


def _end(started):
    """End the processes that still run, and all that they have started."""
    running = [process for process in started if process.pid]
    for number in (signal.SIGABRT, signal.SIGKILL):
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        for process in running:
            process.join(timeout=10)


def _told(rank, code, file):
    ended = "was ended by the test" if code is None else f"ended with {code}"
    said = file.read_text(errors="replace") if file.exists() else ""
    return f"process {rank} {ended}, having said:\n{said[-10_000:]}"
