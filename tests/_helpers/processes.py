"""Starts a test file as several processes, each of which writes what it found to a file."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_A_GROUP = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment():
    """The environment of processes that import this checkout, use one thread each and belong to no other group."""
    kept = {name: value for name, value in os.environ.items() if name not in OF_A_GROUP}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), kept.get("PYTHONPATH", "")])
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def launch(script, folder, *arguments, ranks, timeout=300):
    """Run ``script folder *arguments`` as torchrun would, and return what each process left in ``<rank>.json``."""
    own = [{"WORLD_SIZE": str(ranks), "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    run_together([str(script), str(folder), *arguments], own, timeout)
    return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]


def run_script(script, folder, *arguments, timeout=300):
    """Run ``script folder *arguments`` as one process, which starts the others itself."""
    run_together([str(script), str(folder), *arguments], [{}], timeout)
    return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]


def report(folder, rank, found):
    """Write what a process found, under a final name only when complete."""
    path = Path(folder) / f"{rank}.json"
    path.with_suffix(".tmp").write_text(json.dumps(found))
    path.with_suffix(".tmp").replace(path)


def run_together(command, own, timeout):
    """Run a command once with each of some variables; all end as soon as one fails, or at the timeout.

    Raises:
        AssertionError: what each has said, and of those that did not end by themselves where each thread was.
    """
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        # PYTHONFAULTHANDLER has all threads' stacks written at the signal of _end, in children of a process too.
        shared = environment() | stack.enter_context(_rendezvous()) | {"PYTHONFAULTHANDLER": "1"}
        started = []
        # Files do not fill up, as pipes do while one process waits for another whose pipe is being read.
        said = [stack.enter_context(tempfile.TemporaryFile()) for _ in own]
        stack.callback(_end, started)
        for variables, file in zip(own, said, strict=True):
            to = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
            started.append(subprocess.Popen([sys.executable, *command], env=shared | variables, process_group=0, **to))
        while None in (codes := [process.poll() for process in started]):
            if any(codes) or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        _end(started)
        assert codes == [0] * len(own), "\n".join(map(_told, range(len(own)), codes, said))


@contextlib.contextmanager
def _rendezvous():
    """Yield the variables of a store that this process holds, so that no other takes the port before a first rank."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}


def _end(started):
    """End the processes that still run, and all that they have started."""
    for number in (signal.SIGABRT, signal.SIGKILL):
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)


def _told(rank, code, file):
    ended = "was ended by the test" if code is None else f"ended with {code}"
    file.seek(0)
    return f"process {rank} {ended}, having said:\n{file.read().decode(errors='replace')[-10_000:]}"
