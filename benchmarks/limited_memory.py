"""Merge a model of several GB within a limit on memory, and compare the result with one made by plain torch.

    python benchmarks/limited_memory.py                                  # 2 GB and 4 experts, in 512 MB
    python benchmarks/limited_memory.py --gigabytes 0.02 --width 256     # a quick look

A base with the shapes of a language model, bfloat16 and in shards, and its experts are written first. Each merge runs
in a process of its own, whose anonymous memory above that after its imports is watched; it is timed in the same run, so
the time includes what watching costs. The check holds one task's whole magnitudes in float32, twice the base's size.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
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

RECIPES = {rule: MergeRecipe(rule) for rule in ("task_arithmetic", "ties")}
SHARD_BYTES = 500_000_000
GIGABYTES, WIDTH, TASKS, MAX_MEMORY = 2.0, 4096, 4, "512MB"
PART = 1 << 24
"""Elements that the check works on at a time."""

Combine: TypeAlias = Callable[[Tensor], Tensor]
"""Merges task vectors, ``(T, n) -> (n,)``."""


def write_models(folder: Path, shapes: Shapes, tasks: int) -> tuple[Path, dict[str, Path]]:
    """Write a base and its experts, and return their indices."""
    generator = torch.Generator().manual_seed(0)

    def drawn(name: str) -> Tensor:
        return torch.randn(shapes[name], generator=generator, dtype=torch.bfloat16)

    base_index = write_sharded(folder / "base", shapes, lambda name: drawn(name).mul_(0.02), SHARD_BYTES)
    base = Weights(base_index)
    experts = {}
    for number in range(1, tasks + 1):
        generator.manual_seed(number)
        experts[f"task{number}"] = write_sharded(
            folder / f"task{number}", shapes, lambda name: drawn(name).mul_(1e-3).add_(base.read(name)), SHARD_BYTES
        )
    return base_index, experts


def merge_watched(
    base: Path, tasks: Mapping[str, Path], rule: str, out: Path, max_memory: str, threads: int
) -> tuple[float, int, Path]:
    """Return the seconds of a merge to a file, its peak of memory, and what it wrote."""
    torch.set_num_threads(threads)
    with PeakMemory() as peak:
        began = time.perf_counter()
        written = save_merged(TaskVectors.open(base, tasks), RECIPES[rule], out, max_memory=max_memory)
        seconds = time.perf_counter() - began
    return seconds, peak.increase, written


@dataclass(frozen=True)
class Oracle:
    """Merges by plain torch, part by part.

    Attributes:
        base: The base's weights.
        experts: The tasks' weights.
        shapes: Of the tensors.
    """

    base: Weights
    experts: Sequence[Weights]
    shapes: Shapes

    def parts(self) -> Iterator[tuple[str, slice, Tensor, Tensor]]:
        """Yield a tensor's name, which of its elements, the base there ``(n,)``, and the task vectors ``(T, n)``."""
        for name, shape in self.shapes.items():
            for start in range(0, math.prod(shape), PART):
                elements = slice(start, start + PART)
                base, *experts = (
                    weights.read(name).flatten()[elements].float() for weights in (self.base, *self.experts)
                )
                yield name, elements, base, torch.stack(experts) - base

    def ties(self, density: float) -> Combine:
        thresholds = torch.tensor([self.threshold(expert, density) for expert in self.experts])[:, None]

        def trim(tau: Tensor) -> Tensor:
            return torch.where(tau.abs() >= thresholds, tau, 0)

        votes = sum(float(trim(tau).sum(0).sign().sum(dtype=torch.float64)) for *_, tau in self.parts())
        majority = float(np.sign(votes))

        def combine(tau: Tensor) -> Tensor:
            trimmed = trim(tau)
            signs = trimmed.sum(0).sign()
            signs[signs == 0] = majority
            agreeing = torch.where(torch.where(signs > 0, trimmed > 0, trimmed < 0), trimmed, 0)
            return agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)

        return combine

    def threshold(self, expert: Weights, density: float) -> float:
        """Return the least magnitude of a task that TIES keeps, from all of them at once."""
        elements = sum(map(math.prod, self.shapes.values()))
        magnitudes, end = np.empty(elements, dtype=np.float32), 0
        for name, shape in self.shapes.items():
            tau = expert.read(name).float().sub_(self.base.read(name).float()).abs_()
            start, end = end, end + math.prod(shape)
            magnitudes[start:end] = tau.flatten().numpy()
        rank = elements - int(elements * density)
        magnitudes.partition(rank - 1)
        return float(magnitudes[rank - 1])

    def compare(self, merged: Weights, combine: Combine, scale: float) -> tuple[int, float]:
        """Return how many elements of a result differ, and by how much at most."""
        if merged.names != set(self.shapes):
            raise SystemExit(f"the result's tensors differ: {sorted(merged.names.symmetric_difference(self.shapes))}")
        differing, largest = 0, 0.0
        for name, elements, base, tau in self.parts():
            expected = torch.add(base, combine(tau), alpha=scale).bfloat16()
            found = merged.read(name).flatten()[elements]
            differing += int((found != expected).sum())
            largest = max(largest, float((found.float() - expected.float()).abs().max()))
        return differing, largest


def sum_rows(tau: Tensor) -> Tensor:
    return sum(tau[1:], start=tau[0])


def measure(
    folder: Path,
    gigabytes: float = GIGABYTES,
    width: int = WIDTH,
    tasks: int = TASKS,
    max_memory: str = MAX_MEMORY,
) -> list[dict[str, object]]:
    """Return a row of figures for each rule; the base has at least so many gigabytes."""
    layers = 0
    while total_size(shapes := model_shapes(layers, width)) < gigabytes * 1e9:
        layers += 1
    size = total_size(shapes)
    require_space(folder, (1 + tasks + len(RECIPES)) * size)
    folder = folder / f"{width}-{size}"  # named after what decides the inputs, since those that are there are taken
    progress(f"writing {1 + tasks} models of {size / 1e9:.3g} GB")
    base, experts = write_models(folder, shapes, tasks)
    oracle = Oracle(Weights(base), [Weights(path) for path in experts.values()], shapes)
    rows: list[dict[str, object]] = []
    for rule, recipe in RECIPES.items():
        progress(f"{rule} within {max_memory}")
        out = folder / rule / "merged.safetensors"
        seconds, peak, written = in_fresh_process(
            merge_watched, base, experts, rule, out, max_memory, torch.get_num_threads()
        )
        progress(f"{rule} by plain torch")
        combine = sum_rows if rule == "task_arithmetic" else oracle.ties(recipe.rule.density)
        differing, largest = oracle.compare(Weights(written), combine, recipe.effective_scale)
        rows.append(
            {
                "what": rule,
                "base GB": size / 1e9,
                "limit": max_memory,
                "seconds": seconds,
                "peak MB": peak / 1e6,
                "differing": differing,
                "largest difference": largest,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=GIGABYTES, help="least size of the base")
    parser.add_argument(
        "--width", type=int, default=WIDTH, help="of the model; less for a quick look, a multiple of 16"
    )
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--max-memory", default=MAX_MEMORY)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, help="keeps inputs and results, and takes inputs that are there")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    about = {**environment(), "tasks": options.tasks}
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    with folder_or_temporary(options.folder) as folder:
        rows = measure(folder, options.gigabytes, options.width, options.tasks, options.max_memory)
    print(markdown_lines(rows))
    write_json(options.json, {**about, "rows": rows})


if __name__ == "__main__":
    main()
