"""Time and memory of the engine, beside the floor of reading every input byte once and the published way of TIES.

    python benchmarks/engine.py --json engine.json
    python benchmarks/engine.py --model vit_tiny_patch16_224 --tasks 2 --rounds 1     # a quick look

Synthetic checkpoints with the shapes of a timm model are written first, and are in the page cache when time is taken.
Rounds go over all measured things in turn, so that a busy spell of the machine does not hit one alone. Memory is
anonymous memory, without the pages of mapped files; it is measured afterwards, each time in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from inputs import (
    DTYPES,
    PeakMemory,
    environment,
    folder_or_temporary,
    in_fresh_process,
    markdown_lines,
    write_checkpoints,
    write_json,
)
from safetensors.torch import load_file
from torch import Tensor

from lwptv_lightning import MergeRecipe, TaskVectors, collect_statistics, merge
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.merging import save_merged

Value = TypeVar("Value")

RULES = ("task_arithmetic", "ties", "dare_ties", "breadcrumbs", "consensus_ta", "consensus_ties")
FLOOR = "read every byte once"
BUFFER = 1 << 20
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Inputs:
    """The checkpoints of one run.

    Attributes:
        base: The base's file.
        tasks: Task name to the expert's file.
    """

    base: Path
    tasks: Mapping[str, Path]

    @cached_property
    def vectors(self) -> TaskVectors:
        return TaskVectors.open(self.base, self.tasks)

    @property
    def paths(self) -> list[Path]:
        return [self.base, *self.tasks.values()]

    @property
    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)


Case: TypeAlias = Callable[[Inputs], object]
"""What is measured."""


def read_every_byte(inputs: Inputs) -> None:
    buffer = bytearray(BUFFER)
    for path in inputs.paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def gather_statistics(inputs: Inputs) -> object:
    return collect_statistics(inputs.vectors, layers_from_names(inputs.vectors.names))


def merge_in_memory(inputs: Inputs, rule: str, ratio: float = 0.0) -> dict[str, Tensor]:
    return merge(inputs.vectors, MergeRecipe(rule, ratio=ratio))


def merge_to_file(inputs: Inputs, rule: str) -> Path:
    vectors = TaskVectors.open(inputs.base, inputs.tasks)
    return save_merged(vectors, MergeRecipe(rule), inputs.base.with_name("merged.safetensors"))


def reference_ties(inputs: Inputs, density: float = 0.2) -> dict[str, Tensor]:
    """Merge by TIES as published code does it, on one matrix of all task vectors; without batch normalisation."""
    base = load_file(inputs.base)
    experts = [load_file(path) for path in inputs.tasks.values()]
    names = [name for name, tensor in base.items() if tensor.is_floating_point()]

    def flatten(state: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([state[name].float().flatten() for name in names])

    tau = torch.stack([flatten(state) for state in experts]) - flatten(base)  # (T, d)
    elements = tau.shape[1]
    thresholds = tau.abs().kthvalue(elements - int(elements * density), dim=1, keepdim=True).values
    tau = tau * (tau.abs() >= thresholds)
    signs = tau.sum(0).sign()
    signs[signs == 0] = signs.sum().sign()
    agreeing = tau * torch.where(signs > 0, tau > 0, tau < 0)
    merged = agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
    parts = merged.split([base[name].numel() for name in names])
    return base | {
        name: (base[name].float() + part.view_as(base[name])).to(base[name].dtype)
        for name, part in zip(names, parts, strict=True)
    }


def cases(rules: Iterable[str], *, pruned: bool = False, to_file: Iterable[str] = ()) -> dict[str, Case]:
    """Return what to measure by its name in the table.

    Args:
        rules: Merged in memory.
        pruned: Whether to merge with half of the layers pruned as well.
        to_file: Rules that are merged from files to a file.
    """
    found: dict[str, Case] = {"statistics": gather_statistics}
    for rule in rules:
        found[rule] = partial(merge_in_memory, rule=rule)
        if pruned:
            found[f"{rule}, half pruned"] = partial(merge_in_memory, rule=rule, ratio=0.5)
    return found | {f"{rule}, file to file": partial(merge_to_file, rule=rule) for rule in to_file}


def timed(case: Callable[[Inputs], Value], inputs: Inputs) -> tuple[float, Value]:
    began = time.perf_counter()
    result = case(inputs)
    return time.perf_counter() - began, result


def time_in_turn(measured: Mapping[str, Case], inputs: Inputs, rounds: int) -> dict[str, list[float]]:
    read_every_byte(inputs)  # so that every file is in the page cache
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, case in measured.items():
            taken, result = timed(case, inputs)
            seconds[name].append(taken)
            discard(result)
            del result  # before the next one is made
    return seconds


def peak_memory(case: Case, inputs: Inputs, threads: int) -> tuple[int, int]:
    """Return the peak of anonymous memory above that at the start, and the bytes of the tensors returned."""
    torch.set_num_threads(threads)
    _ = inputs.vectors  # opened before, as when time is taken
    with PeakMemory() as peak:
        result = case(inputs)
    discard(result)
    tensors = result.values() if isinstance(result, dict) else ()
    return peak.increase, sum(tensor.nbytes for tensor in tensors)


def discard(result: object) -> None:
    if isinstance(result, Path):
        result.unlink()


def measure(measured: Mapping[str, Case], inputs: Inputs, rounds: int) -> list[dict[str, Any]]:
    """Return a row of figures for the floor and for each case."""
    seconds = time_in_turn({FLOOR: read_every_byte, **measured}, inputs, rounds)
    floor = min(seconds[FLOOR])
    rows = [figures(FLOOR, seconds[FLOOR], floor, inputs)]
    for name, case in measured.items():
        rows.append(figures(name, seconds[name], floor, inputs) | memory_figures(case, inputs))
    return rows


def figures(name: str, seconds: list[float], floor: float, inputs: Inputs) -> dict[str, Any]:
    best = min(seconds)
    return {
        "what": name,
        "best s": best,
        "median s": statistics.median(seconds),
        "GB/s": inputs.nbytes / best / 1e9,
        "times floor": best / floor,
        "peak MB": None,
        "result MB": None,
        "beyond MB": None,
    }


def memory_figures(case: Case, inputs: Inputs) -> dict[str, Any]:
    peak, result = in_fresh_process(peak_memory, case, inputs, torch.get_num_threads())
    return {"peak MB": peak / 1e6, "result MB": result / 1e6, "beyond MB": (peak - result) / 1e6}


def measure_reference(inputs: Inputs, floor: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time the reference once; return its figures, and how its result compares with ours."""
    taken, expected = timed(reference_ties, inputs)
    found = merge_in_memory(inputs, "ties")
    pairs = [(found[name].float(), expected[name].float(), expected[name].dtype) for name in inputs.vectors.names]
    comparison = {
        "largest_difference": max(float((ours - theirs).abs().max()) for ours, theirs, _ in pairs),
        # One step of rounding is allowed where the dtype's are wider than the tolerance.
        "equal": all(
            torch.allclose(ours, theirs, rtol=torch.finfo(dtype).eps, atol=TOLERANCE) for ours, theirs, dtype in pairs
        ),
    }
    del expected, found, pairs  # before another process makes them again
    return figures("ties, reference", [taken], floor, inputs) | memory_figures(reference_ties, inputs), comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch32_224", help="a name of timm")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rules", nargs="+", default=RULES, help="rules that need no statistics of data")
    parser.add_argument("--skip-reference", action="store_true", help="it takes more than a minute at the default size")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, help="keeps the inputs, and takes those that are there")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    with folder_or_temporary(options.folder) as folder:
        inputs = Inputs(*write_checkpoints(folder, options.model, options.tasks, DTYPES[options.dtype]))
        rows = measure(cases(options.rules, pruned=True, to_file=("task_arithmetic", "ties")), inputs, options.rounds)
        comparison = None
        if not options.skip_reference:
            row, comparison = measure_reference(inputs, floor=rows[0]["best s"])
            rows.append(row)
        about = {
            **environment(),
            **{name: getattr(options, name) for name in ("model", "tasks", "dtype", "rounds")},
            "input_bytes": inputs.nbytes,
        }
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    print(markdown_lines(rows))
    if comparison is not None:
        verdict = "equals" if comparison["equal"] else "DIFFERS FROM"
        largest = comparison["largest_difference"]
        print(f"\nThe reference's result {verdict} ours: the largest difference is {largest:.2g}.")
    write_json(options.json, {**about, "compared_with_reference": comparison, "rows": rows})


if __name__ == "__main__":
    main()
