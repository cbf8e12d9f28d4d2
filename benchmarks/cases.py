"""What engine.py and growth.py measure: statistics and merges of synthetic checkpoints, by the public interface."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from lwptv_lightning import LayerMask, MergeRecipe, TaskVectors, collect_statistics, merge
from lwptv_lightning.checkpoints import Checkpoint, open_checkpoint
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.merging import save_merged

RULES = ("task_arithmetic", "ties", "dare_ties", "breadcrumbs", "consensus_ta", "consensus_ties")
TO_FILE = ("task_arithmetic", "ties")
BUFFER = 1 << 20


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

    def first(self, tasks: int) -> Inputs:
        """Return some of the tasks alone."""
        return Inputs(self.base, dict(islice(self.tasks.items(), tasks)))


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


def merge_in_memory(inputs: Inputs, rule: str, ratio: float = 0.0, max_memory: str | None = None) -> dict[str, Tensor]:
    return merge(inputs.vectors, MergeRecipe(rule, ratio=ratio), max_memory=max_memory)


def merge_to_file(inputs: Inputs, rule: str, max_memory: str | None = None) -> Path:
    vectors = TaskVectors.open(inputs.base, inputs.tasks)
    out = inputs.base.with_name("merged.safetensors")
    return save_merged(vectors, MergeRecipe(rule), out, max_memory=max_memory)


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
            found[half_pruned(rule)] = partial(merge_in_memory, rule=rule, ratio=0.5)
    return found | {file_to_file(rule): partial(merge_to_file, rule=rule) for rule in to_file}


def half_pruned(rule: str) -> str:
    return f"{rule}, half pruned"


def is_pruned(name: str) -> bool:
    return name.endswith("pruned")


def file_to_file(rule: str) -> str:
    return f"{rule}, file to file"


def discard(result: object) -> None:
    """Remove what a case has written."""
    if isinstance(result, Path):
        result.unlink()


class CountingReader:
    """Reads from a checkpoint, and counts how often."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.reads = 0

    def read(self, name: str) -> Tensor:
        self.reads += 1
        return self.checkpoint.read(name)


def reads_of_experts(inputs: Inputs, rules: Iterable[str]) -> dict[str, int]:
    """Count how often a merge reads a tensor of an expert, after all are opened.

    Returns:
        Reads by all the rules together, where no layer is pruned, where a mask prunes all, and where a ratio of 1 does.
    """
    opened = {task: open_checkpoint(path) for task, path in inputs.tasks.items()}
    readers = {task: CountingReader(checkpoint) for task, checkpoint in opened.items()}
    watched = {task: opened[task].with_tensors(opened[task].headers, reader) for task, reader in readers.items()}
    vectors = TaskVectors.open(inputs.base, watched)
    layers = layers_from_names(vectors.names)
    nothing = LayerMask(
        vectors.tasks, layers.names, torch.zeros(len(vectors.tasks), len(layers.names), dtype=torch.bool)
    )
    before = sum(reader.reads for reader in readers.values())
    found = {}
    for how, ratio, mask in (("unpruned", 0.0, None), ("masked", 0.0, nothing), ("ratio 1", 1.0, None)):
        for rule in rules:
            merge(vectors, MergeRecipe(rule, ratio=ratio), layers, mask=mask)
        after = sum(reader.reads for reader in readers.values())
        found[how], before = after - before, after
    return found
