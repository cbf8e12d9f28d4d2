"""Merge a model of several GB within a limit on memory, and compare the result with one made by plain torch.

    python benchmarks/limited_memory.py                                  # 2 GB and 4 experts, in 512 MB
    python benchmarks/limited_memory.py --gigabytes 0.02 --width 256     # a quick look

A base with the shapes of a language model, bfloat16 and in shards, and its experts are written first. Each merge runs
in a process of its own, whose anonymous memory above that after its imports is watched; it is timed in the same run, so
the time includes what watching costs. The check holds one task's whole magnitudes in float32, twice the base's size.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from inputs import PeakMemory, environment, folder_or_temporary, in_fresh_process, markdown_lines, write_json
from safetensors import safe_open
from torch import Tensor

from lwptv_lightning import MergeRecipe, TaskVectors
from lwptv_lightning.merging import save_merged

RECIPES = {rule: MergeRecipe(rule) for rule in ("task_arithmetic", "ties")}
SHARD_BYTES = 500_000_000
PART = 1 << 24
"""Elements that the check works on at a time."""

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Combine: TypeAlias = Callable[[Tensor], Tensor]
"""Merges task vectors, ``(T, n) -> (n,)``."""


def model_shapes(nbytes: int, width: int) -> Shapes:
    """Return the shapes of a language model with as many layers as it takes to reach a size in bfloat16."""
    vocabulary, hidden = 125 * width // 16, 43 * width // 16  # 32000 and 11008 where the width is 4096
    layer = {
        **dict.fromkeys(("q", "k", "v", "o"), (width, width)),
        **dict.fromkeys(("gate", "up"), (hidden, width)),
        "down": (width, hidden),
        "norm": (width,),
    }
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (vocabulary, width)}
    number = 0
    while sum(map(size_of, shapes.values())) < nbytes:
        shapes |= {f"layers.{number}.{name}.weight": shape for name, shape in layer.items()}
        number += 1
    return shapes


def size_of(shape: Sequence[int]) -> int:
    return math.prod(shape) * torch.bfloat16.itemsize


def write_sharded(folder: Path, shapes: Shapes, values: Callable[[str], Tensor]) -> Path:
    """Write a bfloat16 model tensor by tensor, in shards with an index, unless it is there.

    Args:
        folder: Where to write.
        shapes: Of the tensors.
        values: Returns a tensor; called for each in turn.

    Returns:
        The index.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return index
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = [[]]
    for name, shape in shapes.items():
        if shards[-1] and sum(size_of(shapes[other]) for other in shards[-1]) + size_of(shape) > SHARD_BYTES:
            shards.append([])
        shards[-1].append(name)
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        path = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_shard(path, {name: shapes[name] for name in names}, values)
        weight_map |= dict.fromkeys(names, path.name)
    total = sum(map(size_of, shapes.values()))
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return index


def write_shard(path: Path, shapes: Shapes, values: Callable[[str], Tensor]) -> None:
    """Write a safetensors file by hand, since ``save_file`` wants all of its tensors at once."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size_of(shape)]}
        end += size_of(shape)
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in shapes:
            file.write(values(name).view(torch.uint8).numpy().data)


def write_models(folder: Path, shapes: Shapes, tasks: int) -> tuple[Path, dict[str, Path]]:
    """Write a base and its experts, and return their indices."""
    generator = torch.Generator().manual_seed(0)

    def drawn(name: str) -> Tensor:
        return torch.randn(shapes[name], generator=generator, dtype=torch.bfloat16)

    base_index = write_sharded(folder / "base", shapes, lambda name: drawn(name).mul_(0.02))
    base = Weights(base_index)
    experts = {}
    for number in range(1, tasks + 1):
        generator.manual_seed(number)
        experts[f"task{number}"] = write_sharded(
            folder / f"task{number}", shapes, lambda name: drawn(name).mul_(1e-3).add_(base.read(name))
        )
    return base_index, experts


class Weights:
    """Reads tensors of a safetensors file, or of the shards of an index, without the library under test."""

    def __init__(self, path: Path) -> None:
        sharded = path.suffix == ".json"
        files = sorted(set(json.loads(path.read_text())["weight_map"].values())) if sharded else [path.name]
        handles = [safe_open(path.with_name(file), framework="pt") for file in files]
        self._handle_of = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118 (no mapping)

    @property
    def names(self) -> set[str]:
        return set(self._handle_of)

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._handle_of[name].get_tensor(name)
        return tensor


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


def measure(folder: Path, shapes: Shapes, options: argparse.Namespace) -> Iterable[dict[str, object]]:
    """Yield a row of figures for each rule."""
    base, tasks = write_models(folder, shapes, options.tasks)
    oracle = Oracle(Weights(base), [Weights(path) for path in tasks.values()], shapes)
    for rule, recipe in RECIPES.items():
        out = folder / rule / "merged.safetensors"
        seconds, peak, written = in_fresh_process(
            merge_watched, base, tasks, rule, out, options.max_memory, options.threads
        )
        combine = sum_rows if rule == "task_arithmetic" else oracle.ties(recipe.rule.density)
        differing, largest = oracle.compare(Weights(written), combine, recipe.effective_scale)
        yield {
            "rule": rule,
            "limit": options.max_memory,
            "seconds": seconds,
            "peak MB": peak / 1e6,
            "differing": differing,
            "largest difference": largest,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="least size of the base")
    parser.add_argument("--width", type=int, default=4096, help="of the model; less for a quick look, a multiple of 16")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--max-memory", default="512MB")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, help="keeps inputs and results, and takes inputs that are there")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    shapes = model_shapes(int(options.gigabytes * 1e9), options.width)
    about = {**environment(), "tasks": options.tasks, "base_bytes": sum(map(size_of, shapes.values()))}
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    with folder_or_temporary(options.folder) as folder:
        # Named after what decides the inputs, since those that are there are taken.
        rows = list(measure(folder / f"{options.width}-{about['base_bytes']}", shapes, options))
    print(markdown_lines(rows))
    write_json(options.json, {**about, "rows": rows})


if __name__ == "__main__":
    main()
