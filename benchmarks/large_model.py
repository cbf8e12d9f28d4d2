"""Merge a language model of 7 billion parameters from files to files, beside `cp` of the same bytes.

    python benchmarks/large_model.py                                     # 13.5 GB in bfloat16, 2 experts, in 2 GB
    python benchmarks/large_model.py --layers 1 --width 256              # a quick look

Base and experts are sparse files: the first rows of each tensor hold numbers, and the rest are holes, which read as
zeros. What is written is as large as it looks, 13.5 GB. `cp` stands for all the bytes that the merge moves: it copies
the base without holes and waits until the copy is on the disk, as the merge does with its result, and the experts are
read once. GB/s counts the bytes read and written, which are the same for both. Each merge runs in a process of its own,
whose anonymous memory is watched, imports included.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from cases import Inputs, read_every_byte
from inputs import (
    PeakMemory,
    environment,
    folder_or_temporary,
    in_fresh_process,
    markdown_lines,
    progress,
    require_space,
    write_json,
)
from language_model import Shapes, Weights, model_shapes, total_size, write_sharded
from torch import Tensor

from lwptv_lightning import MergeRecipe, TaskVectors
from lwptv_lightning.merging import save_merged

LAYERS, WIDTH, TASKS, MAX_MEMORY = 32, 4096, 2, "2GB"
SHARD_BYTES = 5_000_000_000
ROWS = 8
"""Of each tensor, what is no hole."""
COPY = ("cp", "--sparse=never", "--reflink=never")
RECIPE = MergeRecipe("task_arithmetic")


def write_sparse(folder: Path, shapes: Shapes, tasks: int) -> list[Path]:
    """Write a base and its experts, and return their indices."""
    indices = []
    for number in range(tasks + 1):
        of_base, of_change = torch.Generator().manual_seed(0), torch.Generator().manual_seed(number)

        def first_rows(name: str, of_base: torch.Generator = of_base, of_change: torch.Generator = of_change) -> Tensor:
            shape = (min(ROWS, shapes[name][0]), *shapes[name][1:])
            values = 0.02 * torch.randn(shape, generator=of_base)
            return (values + 1e-3 * torch.randn(shape, generator=of_change)).bfloat16()

        indices.append(write_sharded(folder / f"model{number}", shapes, first_rows, SHARD_BYTES))
    return indices


def copy_seconds(base: Weights, experts: list[Weights], out: Path) -> float:
    """Copy one model's files and read those of the others."""
    out.mkdir()
    os.sync()
    began = time.perf_counter()
    for file in base.files:
        subprocess.run([*COPY, str(file), str(out)], check=True)
        with (out / file.name).open("rb") as copied:
            os.fsync(copied.fileno())
    for expert in experts:
        read_every_byte(Inputs(expert.files[0], {file.name: file for file in expert.files[1:]}))
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def merge_watched(
    base: Path, tasks: Mapping[str, Path], out: Path, max_memory: str, threads: int
) -> tuple[float, int, Path]:
    """Return the seconds of a merge to files, the highest anonymous memory, and the index."""
    torch.set_num_threads(threads)
    os.sync()
    with PeakMemory() as peak:
        began = time.perf_counter()
        written = save_merged(TaskVectors.open(base, tasks), RECIPE, out, max_memory=max_memory)
        seconds = time.perf_counter() - began
    return seconds, peak.highest, written


def differing(merged: Weights, base: Weights, experts: list[Weights], shapes: Shapes) -> int:
    """Count, in the rows that hold numbers and in those behind them, elements that are not what plain torch finds."""
    if merged.names != set(shapes):
        raise SystemExit(f"the result's tensors differ: {sorted(merged.names.symmetric_difference(shapes))}")
    found = 0
    for name in shapes:
        first, *rest = (weights.first_rows(name, 2 * ROWS).float() for weights in (base, *experts))
        tau = sum((expert - first for expert in rest[1:]), start=rest[0] - first)
        expected = torch.add(first, tau, alpha=RECIPE.effective_scale).bfloat16()
        found += int((merged.first_rows(name, 2 * ROWS) != expected).sum())
    return found


def measure(
    folder: Path, layers: int = LAYERS, width: int = WIDTH, tasks: int = TASKS, max_memory: str = MAX_MEMORY
) -> list[dict[str, object]]:
    """Return a row of figures for `cp`, and one for the merge."""
    shapes = model_shapes(layers, width, head=True)
    size = total_size(shapes)
    require_space(folder, size + (1 << 30))
    progress(f"writing {1 + tasks} sparse models of {size / 1e9:.3g} GB")
    base, *experts = write_sparse(folder, shapes, tasks)
    weights = [Weights(index) for index in experts]
    progress("cp")
    copying = copy_seconds(Weights(base), weights, folder / "copied")
    progress(f"{RECIPE.rule.name} within {max_memory}")
    merging, peak, written = in_fresh_process(
        merge_watched,
        base,
        {index.parent.name: index for index in experts},
        folder / "merged" / "merged.safetensors",
        max_memory,
        torch.get_num_threads(),
    )
    wrong = differing(Weights(written), Weights(base), weights, shapes)
    shutil.rmtree(folder / "merged")
    moved = (2 + tasks) * size / 1e9
    about = {"parameters M": sum(map(math.prod, shapes.values())) / 1e6, "GB read and written": moved}
    return [
        {
            "what": what,
            **about,
            "seconds": seconds,
            "GB/s": moved / seconds,
            "limit": limit,
            "peak MB": highest,
            "differing": count,
        }
        for what, seconds, limit, highest, count in (
            ("cp of the same bytes", copying, "", None, None),
            (RECIPE.rule.name, merging, max_memory, peak / 1e6, wrong),
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument(
        "--width", type=int, default=WIDTH, help="of the model; less for a quick look, a multiple of 16"
    )
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--max-memory", default=MAX_MEMORY)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    about = {**environment(), "tasks": options.tasks}
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    with folder_or_temporary(None) as folder:
        rows = measure(folder, options.layers, options.width, options.tasks, options.max_memory)
    print(markdown_lines(rows))
    write_json(options.json, {**about, "rows": rows})


if __name__ == "__main__":
    main()
