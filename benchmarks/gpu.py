"""Time on a CUDA device, beside the time that moving every input byte once would take there.

    python benchmarks/gpu.py --json gpu.json

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
from inputs import environment, folder_or_temporary, markdown_lines, write_checkpoints, write_json
from torch import Tensor

from lwptv_lightning import MergeRecipe, TaskVectors, collect_statistics, merge
from lwptv_lightning.layers import layers_from_names

DEVICE = "cuda"
COPIED_BYTES = 1 << 30
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


COMPUTED = {
    "statistics": statistics,
    "task_arithmetic": partial(merged, rule="task_arithmetic"),
    "ties": partial(merged, rule="ties"),
}


def relative_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest difference in any tensor, relative to the largest magnitude there."""

    def of(name: str) -> float:
        difference = (found[name].cpu().double() - expected[name].double()).abs().max()
        return float(difference / expected[name].double().abs().max().clamp(min=torch.finfo(torch.float32).tiny))

    return max(map(of, expected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_large_patch16_224", help="a name of timm")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keeps the inputs, and takes those that are there")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here, so there is nothing to measure.")
        return

    bandwidth = bandwidths(options.rounds)
    rows = []
    with folder_or_temporary(options.folder) as folder:
        vectors = TaskVectors.open(*write_checkpoints(folder, options.model, options.tasks))
        nbytes = (1 + options.tasks) * sum(header.nbytes for header in vectors.headers.values())
        sources = {"device": vectors.load(DEVICE), "host": vectors}
        for what, compute in COMPUTED.items():
            expected = compute(vectors, "cpu")
            for place, source in sources.items():
                taken = milliseconds(partial(compute, source, DEVICE), options.rounds)
                floor = nbytes / bandwidth[place]
                rows.append(
                    {
                        "what": what,
                        "weights on": place,
                        "best ms": taken,
                        "floor ms": floor,
                        "times floor": taken / floor,
                        "difference": relative_difference(compute(source, DEVICE), expected),
                    }
                )
    about = {
        **environment(),
        "gpu": torch.cuda.get_device_name(),
        "model": options.model,
        "tasks": options.tasks,
        "rounds": options.rounds,
        "input_bytes": nbytes,
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
