"""Time and memory of the engine, beside the floor of reading every input byte once, and the limits it is to keep.

    python benchmarks/engine.py --json engine.json
    python benchmarks/engine.py --model vit_tiny_patch16_224 --tasks 2 --rounds 1     # a quick look

Synthetic checkpoints with the shapes of a timm model are written first, and are in the page cache when time is taken.
Every case runs once before, which compiles or loads its kernels. Rounds go over all cases in turn: with the default
number of threads and with one, and then beside a busy process, which the script starts itself. Memory is anonymous
memory, without the pages of mapped files; it is measured afterwards, each time in a process of its own. The language
models of limited_memory.py and large_model.py come last. A table of the figures and one of the limits are printed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import large_model
import limited_memory
import torch
from cases import (
    RULES,
    TO_FILE,
    Case,
    Inputs,
    cases,
    file_to_file,
    is_pruned,
    merge_in_memory,
    merge_to_file,
    reads_of_experts,
)
from inputs import (
    DTYPES,
    environment,
    folder_or_temporary,
    markdown_lines,
    progress,
    require_space,
    write_checkpoints,
    write_json,
)
from limits import (
    of_language_models,
    of_memory,
    of_pruning,
    of_reads,
    of_reference,
    of_startup,
    of_times,
)
from reference import Reference, measure_reference
from startup import compile_seconds, measure_startup
from timing import CROWDED, FLOOR, ONE_THREAD, QUIET, Timings, figures, peak_beyond, time_in_turn

from lwptv_lightning.merging import MemoryLimitError

MODEL = "vit_base_patch32_224"
REFERENCE = "ties, reference"
SPACE = 30_000_000_000
"""Bytes that the inputs and the language models take of the disk at once, and some more."""

Peaks: TypeAlias = Mapping[str, Mapping[int, Mapping[str, float]]]
"""What cases take of memory in MB, by name and number of tasks."""


def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything, with inputs in a folder; each table is printed when it is known."""
    language = options.language_models if options.language_models is not None else options.model == MODEL
    if language:
        require_space(folder, SPACE)
    progress("writing checkpoints")
    most = Inputs(*write_checkpoints(folder, options.model, 2 * options.tasks, DTYPES[options.dtype]))
    inputs = most.first(options.tasks)
    measured = cases(options.rules, pruned=True, to_file=TO_FILE)

    startup = measure_startup()
    timings = time_in_turn(measured, inputs, options.rounds, (QUIET, ONE_THREAD, CROWDED))
    print(f"Other programs kept {timings.others.cores:.2f} cores busy in the rounds that want a quiet machine.")
    reference = None if options.skip_reference else measure_reference(inputs, options.rounds)
    found: dict[str, Any] = {"busy_with_others": timings.others.cores, "input_bytes": inputs.nbytes}
    found["times"] = shown(times(timings, inputs, reference))
    reads = reads_of_experts(inputs, options.rules)
    memory = peaks(measured, most, options.tasks)
    kept = peaks_within_limits(inputs)
    found["memory"] = shown(peak_rows(memory, reference))
    cold, cached = found["compile_s"] = compile_seconds(measured, inputs)
    print(
        f"\nKernels of all cases take {cold:.1f} s of the processor to compile, {cached:.1f} s to load from the cache."
    )
    language_models = measure_language_models(folder) if language else {}
    limits = [
        *of_times(timings),
        *of_pruning(timings, options.rules),
        *of_reads(reads),
        *(of_reference(timings, reference) if reference is not None else ()),
        *of_memory({name: beyond(by_tasks) for name, by_tasks in memory.items()}, kept),
        *of_startup(startup),
        *of_language_models(language_models),
    ]
    failed = sum(not limit.met for limit in limits)
    found |= language_models | {"limits": shown([limit.row() for limit in limits])}
    print(f"\n{failed} of {len(limits)} limits are not met." if failed else "\nAll limits are met.")
    return found


def shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print a table of rows, and return them."""
    print(f"\n{markdown_lines(rows)}", flush=True)
    return rows


def peaks(measured: Mapping[str, Case], most: Inputs, tasks: int) -> Peaks:
    """Measure memory of each case with so many tasks, and of those without pruning with half and twice as many."""
    found = {}
    for name, case in measured.items():
        progress(f"memory: {name}")
        numbers = [tasks] if is_pruned(name) else sorted({max(1, tasks // 2), tasks, 2 * tasks})
        found[name] = {number: peak_beyond(case, most.first(number)) for number in numbers}
    return found


def beyond(by_tasks: Mapping[int, Mapping[str, float]]) -> dict[int, float]:
    return {tasks: row["beyond MB"] for tasks, row in by_tasks.items()}


def peaks_within_limits(inputs: Inputs) -> dict[tuple[str, str], float]:
    """Return what merges take beyond the result where ``max_memory`` is given, in MB, by case and limit.

    It is NaN where the library refuses the limit.
    """
    limited = {
        ("ties", "250MB"): partial(merge_in_memory, rule="ties"),
        ("breadcrumbs", "250MB"): partial(merge_in_memory, rule="breadcrumbs"),
        (file_to_file("ties"), "250MB"): partial(merge_to_file, rule="ties"),
        # Of whole tensors, whose size and number decide.
        (file_to_file("iso_c"), f"{150 * len(inputs.tasks)}MB"): partial(merge_to_file, rule="iso_c"),
    }
    found = {}
    for (name, limit), case in limited.items():
        progress(f"memory: {name} within {limit}")
        try:
            found[name, limit] = peak_beyond(partial(case, max_memory=limit), inputs)["beyond MB"]
        except MemoryLimitError as error:
            progress(str(error))
            found[name, limit] = math.nan
    return found


def measure_language_models(folder: Path) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for script in (limited_memory, large_model):
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            found[script.__name__] = shown(script.measure(Path(temporary)))
    return found


def times(timings: Timings, inputs: Inputs, reference: Reference | None) -> list[dict[str, Any]]:
    """Return the times of the floor, of each case, and of the reference."""
    rows = [
        row
        | {
            "one thread s": timings.best(row["what"], ONE_THREAD),
            "crowded s": timings.best(row["what"], CROWDED),
        }
        for row in figures(timings, inputs)
    ]
    if reference is not None:
        best = min(reference.seconds)
        known = {
            "what": REFERENCE,
            "best s": best,
            "median s": statistics.median(reference.seconds),
            "GB/s": inputs.nbytes / best / 1e9,
            "times floor": best / timings.best(FLOOR),
        }
        rows.append(dict.fromkeys(rows[0]) | known)
    return rows


def peak_rows(memory: Peaks, reference: Reference | None) -> list[dict[str, Any]]:
    """Return the memory of each case for each number of tasks, and of the reference."""
    numbers = sorted({tasks for by_tasks in memory.values() for tasks in by_tasks})
    rows: list[dict[str, Any]] = [
        {"beyond the result, MB": name} | {f"{tasks} tasks": beyond(by_tasks).get(tasks) for tasks in numbers}
        for name, by_tasks in memory.items()
    ]
    if reference is not None:
        known = {"beyond the result, MB": REFERENCE, f"{reference.tasks} tasks": reference.beyond / 1e6}
        rows.append(dict.fromkeys(rows[0]) | known)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="a name of timm")
    parser.add_argument("--tasks", type=int, default=8, help="half and twice as many where memory is measured")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rules", nargs="+", default=RULES, help="rules that need no statistics of data")
    parser.add_argument("--skip-reference", action="store_true", help="it takes a minute a round at the default size")
    parser.add_argument(
        "--language-models",
        action=argparse.BooleanOptionalAction,
        help="whether to merge those of several GB, which take 30 GB of disk; by default with the default model",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, help="keeps the inputs, and takes those that are there")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    about = environment() | {name: getattr(options, name) for name in ("model", "tasks", "dtype", "rounds")}
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    with folder_or_temporary(options.folder) as folder:
        found = run(folder, options)
    write_json(options.json, about | found)


if __name__ == "__main__":
    main()
