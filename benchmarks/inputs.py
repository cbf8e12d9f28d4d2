"""What the benchmarks share: synthetic checkpoints, how memory is measured, and how figures are shown."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import date
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

Value = TypeVar("Value")

BEGAN = time.monotonic()
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def write_checkpoints(
    folder: Path, model: str, tasks: int, dtype: torch.dtype = torch.float32
) -> tuple[Path, dict[str, Path]]:
    """Write a base and its experts with the shapes of a timm model, without its classifier.

    The base is ``0.02 * randn``, an expert adds ``1e-3 * randn * rand`` to it. The values depend on the number of the
    file alone, so that files which are there already can stay.

    Args:
        folder: Where to write; made where it does not exist.
        model: A name of timm.
        tasks: How many experts.
        dtype: Of the weights.

    Returns:
        The base's file, and task name to the expert's file.
    """
    import timm  # takes seconds, and processes that only read checkpoints do without

    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        like = timm.create_model(model, num_classes=0).state_dict()
    label = f"{model}-{str(dtype).removeprefix('torch.')}"
    paths = [folder / f"{label}-{number}.safetensors" for number in range(tasks + 1)]
    for number, path in enumerate(paths):
        if not path.exists():
            unfinished = path.with_suffix(".part")
            save_file(_weights(number, like, dtype), unfinished)
            unfinished.rename(path)
    return paths[0], {f"task{number}": path for number, path in enumerate(paths[1:], start=1)}


def _weights(number: int, like: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    base, change = torch.Generator().manual_seed(0), torch.Generator().manual_seed(number)
    state = {}
    for name, tensor in like.items():
        if not tensor.is_floating_point():
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
            continue
        values = 0.02 * torch.randn(tensor.shape, generator=base)
        if number:
            size = torch.rand(tensor.shape, generator=change)
            values += 1e-3 * size * torch.randn(tensor.shape, generator=change)
        state[name] = values.to(dtype)
    return state


def elapsed() -> float:
    """Return the seconds since the script began."""
    return time.monotonic() - BEGAN


def progress(text: str) -> None:
    """Say on the error stream what comes next, and when, so that a run that is cut off leaves something."""
    print(f"[{elapsed():6.1f} s] {text}", file=sys.stderr, flush=True)


@contextmanager
def folder_or_temporary(folder: Path | None) -> Iterator[Path]:
    """Give a folder that stays, or one that is removed in the end, also where the process is asked to end."""
    if folder is not None:
        yield folder
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
    finally:
        signal.signal(signal.SIGTERM, before)


def require_space(folder: Path, nbytes: int) -> None:
    """End the script where a folder's disk has no room for what is to be written there."""
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise SystemExit(f"{folder}: {nbytes / 1e9:.0f} GB are to be written, and {free / 1e9:.0f} GB are free.")


def anonymous_memory() -> int:
    """Return how many bytes of memory are this process's own: pages of mapped files do not count."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


class PeakMemory:
    """Watches the anonymous memory of this process while a block runs, from a thread that looks every 10 ms.

    The thread takes time from those of torch: do not time what runs meanwhile.

    Attributes:
        highest: The highest value seen, in bytes.
        increase: The same minus the value at the start.
    """

    def __enter__(self) -> PeakMemory:
        self._before = self.highest = anonymous_memory()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def increase(self) -> int:
        return self.highest - self._before

    def _watch(self) -> None:
        done = False
        while not done:
            done = self._done.wait(0.01)
            self.highest = max(self.highest, anonymous_memory())


def in_fresh_process(function: Callable[..., Value], *arguments: object) -> Value:
    """Call a function in a new process, where no earlier call has left freed memory that would hide its peak."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        try:
            return executor.submit(function, *arguments).result()
        except BaseException:
            for process in active_children():  # which would go on to its end, where this one is to stop
                process.kill()
            raise


def environment() -> dict[str, Any]:
    """Return what figures depend on besides the inputs."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def markdown_lines(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as an aligned Markdown table: text to the left, numbers to the right.

    Args:
        rows: Heading to cell, the same headings in each; floats get three significant digits, ``None`` stays empty.
    """
    headings = list(rows[0])
    cells = [headings, *([_text(row[heading]) for heading in headings] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [not any(isinstance(row[heading], str) for row in rows) for heading in headings]
    columns = list(zip(widths, numeric, strict=True))
    lines = [
        [cell.rjust(width) if right else cell.ljust(width) for cell, (width, right) in zip(line, columns, strict=True)]
        for line in cells
    ]
    lines.insert(1, ["-" * (width - 1) + (":" if right else "-") for width, right in columns])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write figures to a file, where one is asked for."""
    if path is not None:
        path.write_text(json.dumps(content, indent=2) + "\n")
