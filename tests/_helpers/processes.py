"""Starts a test file as several processes, each of which writes what it found to a file."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment():
    """The environment of processes that import this checkout, use one thread each and belong to no other group."""
    kept = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), kept.get("PYTHONPATH", "")])
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def launch(script, folder, *arguments, ranks, timeout=300):
    """Run ``script folder *arguments`` as torchrun would, and return what each process left in ``<rank>.json``."""
    shared = environment() | {"WORLD_SIZE": str(ranks)}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), *arguments],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * ranks, "\n".join(err[-3000:] for _, err in said)
    return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]


def run_script(script, folder, *arguments, timeout=300):
    """Run ``script folder *arguments`` as one process, which starts the others itself."""
    done = subprocess.run(
        [sys.executable, str(script), str(folder), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]


def report(folder, rank, found):
    """Write what a process found, under a final name only when complete."""
    path = Path(folder) / f"{rank}.json"
    path.with_suffix(".tmp").write_text(json.dumps(found))
    path.with_suffix(".tmp").replace(path)
