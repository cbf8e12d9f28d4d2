"""Time on a CUDA device, beside the time that moving every input byte once would take there.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --short                     # less of everything, within four minutes

Task vectors come from checkpoints held on the device, and from mapped files in the page cache. The first are compared
with the device's own memory, the second with copies from pinned host memory; both bandwidths are measured in the same
run. All times are taken with CUDA events, best of the rounds. Results must agree with the CPU's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from cases import RULES
from inputs import (
    elapsed,
    environment,
    folder_or_temporary,
    markdown_lines,
    progress,
    write_checkpoints,
    write_json,
)
from torch import Tensor

from lwptv_lightning import MergeRecipe, TaskVectors, collect_statistics, merge
from lwptv_lightning.layers import layers_from_names

DEVICE = "cuda"
COPIED_BYTES = 1 << 30
SHORT = {"model": "vit_base_patch16_224", "tasks": 8, "rounds": 3, "seconds": 150.0}
LONG = {"model": "vit_large_patch16_224", "tasks": 8, "rounds": 5, "seconds": float("inf")}
TOLERANCE = 1e-6


def milliseconds(function: Callable[[], object], rounds: int) -> float:
    """Return the best time of some rounds, after one that does not count."""
    function()
    taken = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end))
    return min(taken)


def bandwidths(rounds: int) -> dict[str, float]:
    """Return bytes per millisecond of the device's memory, and of copies from pinned host memory to it."""
    target = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=DEVICE)
    on_device = torch.zeros_like(target)
    on_host = torch.zeros(COPIED_BYTES, dtype=torch.uint8, pin_memory=True)
    return {
        # A copy inside the device reads and writes each byte.
        "device": 2 * COPIED_BYTES / milliseconds(lambda: target.copy_(on_device), rounds),
        "host": COPIED_BYTES / milliseconds(lambda: target.copy_(on_host, non_blocking=True), rounds),
    }


def statistics(vectors: TaskVectors, device: str) -> dict[str, Tensor]:
    found = collect_statistics(vectors, layers_from_names(vectors.names), device)
    return {"gram": found.gram, "l1": found.l1, "agreeing": found.agreeing, "opposing": found.opposing}


def merged(vectors: TaskVectors, device: str, rule: str) -> dict[str, Tensor]:
    return merge(vectors, MergeRecipe(rule), device=device)


COMPUTED = {"statistics": statistics, **{rule: partial(merged, rule=rule) for rule in RULES}}


def relative_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest difference in any tensor, relative to the largest magnitude there."""

    def of(name: str) -> float:
        difference = (found[name].cpu().double() - expected[name].double()).abs().max()
        return float(difference / expected[name].double().abs().max().clamp(min=torch.finfo(torch.float32).tiny))

    return max(map(of, expected))


def measure(
    vectors: TaskVectors, rounds: int, bandwidth: Mapping[str, float], seconds: float
) -> list[dict[str, object]]:
    """Return a row of figures for each case, with weights on the device and in host memory.

    Each row is said on the error stream when it is known. No case begins after so many seconds of the script.
    """
    nbytes = size_of(vectors)
    rows: list[dict[str, object]] = []
    progress("weights to the device")
    sources = {"device": vectors.load(DEVICE), "host": vectors}
    for what, compute in COMPUTED.items():
        if elapsed() > seconds:
            progress(f"{what} is left out, after {seconds:g} s")
            continue
        progress(f"{what} on the CPU")
        expected = compute(vectors, "cpu")
        for place, source in sources.items():
            progress(f"{what}, weights on the {place}")
            difference = relative_difference(compute(source, DEVICE), expected)
            taken = milliseconds(partial(compute, source, DEVICE), rounds)
            floor = nbytes / bandwidth[place]
            progress(f"{what}, weights on the {place}: {taken:.1f} ms, {taken / floor:.2f} times the floor")
            rows.append(
                {
                    "what": what,
                    "weights on": place,
                    "best ms": taken,
                    "floor ms": floor,
                    "times floor": taken / floor,
                    "difference": difference,
                }
            )
    return rows


def size_of(vectors: TaskVectors) -> int:
    return (1 + len(vectors.tasks)) * sum(header.nbytes for header in vectors.headers.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help=f"unless given: {SHORT}")
    parser.add_argument("--model", help="a name of timm")
    parser.add_argument("--tasks", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="no case begins later")
    parser.add_argument("--folder", type=Path, help="keeps the inputs, and takes those that are there")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.set_defaults(**LONG)
    if parser.parse_known_args()[0].short:
        parser.set_defaults(**SHORT)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here, so there is nothing to measure.")

    progress(f"bandwidths of {torch.cuda.get_device_name()}")
    bandwidth = bandwidths(options.rounds)
    with folder_or_temporary(options.folder) as folder:
        progress(f"writing {1 + options.tasks} models")
        vectors = TaskVectors.open(*write_checkpoints(folder, options.model, options.tasks))
        rows = measure(vectors, options.rounds, bandwidth, options.seconds)
    about = {
        **environment(),
        "gpu": torch.cuda.get_device_name(),
        "model": options.model,
        "tasks": options.tasks,
        "rounds": options.rounds,
        "input_bytes": size_of(vectors),
        **{f"{place}_GB_per_s": round(value / 1e6, 1) for place, value in bandwidth.items()},
    }
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    print(markdown_lines(rows))
    write_json(options.json, {**about, "rows": rows})
    apart = [f"{row['what']} ({row['weights on']})" for row in rows if row["difference"] > TOLERANCE]
    if apart:
        raise SystemExit(f"\nMore than {TOLERANCE} from the CPU's result: {', '.join(apart)}.")


if __name__ == "__main__":
    main()
