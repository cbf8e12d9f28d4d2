"""``lwptv verify``: whether a file is what was written, and what its recipe makes of its inputs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lwptv_lightning.checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointSource,
    FunctionReader,
    Provenance,
    TensorHeader,
    open_checkpoint,
)
from lwptv_lightning.engine import DataStatistics, Execution
from lwptv_lightning.inspection.compare import TensorDifference, compare_pieces, vector_pieces
from lwptv_lightning.inspection.files import WrittenModel
from lwptv_lightning.inspection.inputs import assigned, base_problem, input_problems, vector_base_problem
from lwptv_lightning.inspection.naming import naming_model
from lwptv_lightning.inspection.remake import plan_again
from lwptv_lightning.merging import fingerprint_of_data
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import matcher, printable, printable_name, require_kind
from lwptv_lightning.task_vectors import TaskVectors

_OURS = "a model that lwptv merge, save_merged, MergeModule.save_merged or TaskVectorCheckpoint wrote"


@dataclass(frozen=True)
class Verification:
    """What `verify` found of a file.

    Attributes:
        source: The file.
        made: What it says of itself.
        files: How many files it has.
        damaged: File to what is wrong with it, such as bytes that changed since they were written.
        unchecked: Files without a checksum by which to tell.
        inputs: ``"base"``, ``"data"`` or a task's name to how it is not what was merged.
        tensors: How many tensors it should have; 0 where no inputs were given, or others than those of the merge.
        compared: How many of these were made again.
        differing: Tensor name to how it is not what was made.
        reasons: Why a tensor may differ although nothing is wrong with the file.
    """

    source: str
    made: Provenance
    files: int = 1
    damaged: Mapping[str, str] = field(default_factory=dict)
    unchecked: Sequence[str] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    tensors: int = 0
    compared: int = 0
    differing: Mapping[str, TensorDifference] = field(default_factory=dict)
    reasons: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        """Whether all is as it should be: the bytes as written, or every tensor, and whatever was compared besides."""
        known = not self.unchecked or 0 < self.tensors == self.compared
        return known and not (self.damaged or self.inputs or self.differing)


def verify(
    path: str | Path,
    base: CheckpointSource | None = None,
    tasks: Mapping[str, CheckpointSource] | None = None,
    *,
    data: DataStatistics | None = None,
    sample: int | None = None,
    seed: int = 0,
    exclude: Sequence[str] = (),
    model: nn.Module | None = None,
    prefix: str | None = None,
    ema: bool | None = None,
    resize_position_embedding: bool = False,
    execution: Execution | None = None,
) -> Verification:
    """Check a file of the library by its checksums and, with what it was made from, by making it again.

    Made again is a tensor at a time, in memory never the whole model, and compared bit for bit.

    Args:
        path: What the library wrote: a merged model, in one file or in shards, a task vector, or its base.
        base: The base that it was made from; for this and what follows see `lwptv_lightning.TaskVectors.open`.
        tasks: Task name to fine-tuned weights.
        data: What was collected on data, where the rule needs it.
        sample: How many tensors to make again, drawn at random; by default all.
        seed: For the draw.
        exclude: Globs of tensors that were not merged, where the file is of an earlier version, which does not say.
        model: The module that the weights belong to, where the merge was given one; by default one that is built of
            the configuration beside the base or the file, where the file has other names than the base.
        prefix: What the wanted names start with.
        ema: Whether to take averaged weights.
        resize_position_embedding: Whether to resample what is of another image size, as is done where the file says so.
        execution: Where and how to compute.

    Returns:
        What was found; ``passed`` where all is equal.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It cannot be read, or does not say how it was made.
        ValueError: There are tasks without a base, the rule's data are missing, or ``sample`` is below 1.

    Example:
        >>> import tempfile
        >>> from lwptv_lightning import MergeRecipe, save_merged
        >>> base, tasks = {"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_merged(TaskVectors.open(base, tasks), MergeRecipe(), f"{folder}/merged.safetensors")
        ...     same, other = verify(path, base, tasks), verify(path, base, {"a": {"w": torch.ones(2) * 2}})
        >>> same.passed, same.compared, other.passed, list(other.inputs)
        (True, 1, False, ['a'])
    """
    if tasks and base is None:
        raise ValueError("tasks need the base that they were fine-tuned from.")
    require_kind("sample", sample, int | None, "a whole number")
    if sample is not None and sample < 1:
        raise ValueError(f"sample must be at least 1, not {sample}.")
    written = WrittenModel.open(path)
    source, metadata = str(path), written.checkpoint.metadata
    made = Provenance() if metadata.get("lwptv_kind") == "data_statistics" else Provenance.of(written.checkpoint)
    found = Verification(source, made, len(written.files), written.damaged, written.unchecked)
    if base is None:
        return found
    if made.kind is None:
        raise CheckpointError(f"{source}: its metadata do not say how it was made; expected {_OURS}.")
    options: dict[str, Any] = {"model": model, "prefix": prefix, "ema": ema, "exclude": exclude}
    options["resize_position_embedding"] = resize_position_embedding or bool(made.resized)
    check = _Check(found, written.checkpoint, sample, seed)
    if made.kind == "base":
        return check.as_base(base, prefix)
    if made.kind == "adapter":
        raise ValueError(f"{source} is an adapter, which is checked by itself; verify makes whole models again.")
    if not tasks:
        raise ValueError(f"{source} is made of a base and {len(made.tasks)} tasks: name these too.")
    if made.kind == "task_vector":
        return check.as_task_vector(base, tasks, options)
    return check.as_merge(base, tasks, options, data, execution)


@dataclass(frozen=True)
class _Check:
    """Compares a file with what it should hold."""

    found: Verification
    stored: Checkpoint
    sample: int | None
    seed: int

    def as_base(self, base: CheckpointSource, prefix: str | None) -> Verification:
        """Compare with another file of the same weights."""
        given = open_checkpoint(base, prefix)
        names = self._chosen(given.names)
        fitting = [name for name in names if name in self.stored.headers]
        pieces = ((name, slice(0, None), given.read(name).reshape(-1)) for name in fitting)
        return self._compared(given.headers, names, pieces, ())

    def as_task_vector(
        self, base: CheckpointSource, tasks: Mapping[str, CheckpointSource], options: Mapping[str, Any]
    ) -> Verification:
        """Compare with fine-tuned minus base."""
        made = self.found.made
        problems = {} if set(tasks) == set(made.tasks) else input_problems(made.tasks, dict.fromkeys(tasks, ""))
        if problems:
            return replace(self.found, inputs=problems)
        vectors = TaskVectors.open(base, tasks, **options)
        problem = vector_base_problem(made, Checkpoint("base", vectors.headers, FunctionReader(vectors.base)))
        if problem is not None:
            return replace(self.found, inputs={"base": problem})
        expected = list(self.stored.names if made.base_tensors is None else made.base_tensors)
        wanted = {name: self.stored.headers.get(name, vectors.headers[name]) for name in expected}
        names = self._chosen(expected)
        fitting = [name for name in names if name in self.stored.headers]
        pieces = vector_pieces(self.stored, vectors, fitting, made.density or 1.0)
        return self._compared(wanted, names, pieces, ())

    def as_merge(
        self,
        base: CheckpointSource,
        tasks: Mapping[str, CheckpointSource],
        options: Mapping[str, Any],
        data: DataStatistics | None,
        execution: Execution | None,
    ) -> Verification:
        """Compare with the merge, made again."""
        made, model = self.found.made, options["model"]
        if model is None:
            options = {**options, "model": naming_model(self.stored, base, options["prefix"])}
        options = {**options, "exclude": tuple(dict.fromkeys((*options["exclude"], *made.excluded)))}
        vectors = TaskVectors.open(base, tasks, **options)
        base_print, given = vectors.fingerprints(made.base)
        problems = input_problems(made.tasks, given)
        own = assigned(made.tasks, given)
        if (problem := base_problem(made.base, base_print)) is not None:
            problems["base"], own = problem, None
        if made.data is not None and data is not None and fingerprint_of_data(data, made.data) != made.data:
            problems["data"], own = "are other statistics of data than those of the merge.", None
        self_found = replace(self.found, inputs=problems)
        if own is None:
            return self_found
        if any(task != name for task, name in own.items()):
            vectors = TaskVectors.open(base, {task: tasks[name] for task, name in own.items()}, **options)
        plan = plan_again(self.found.source, made, vectors, data, model, execution)
        is_apart = matcher(made.excluded)
        # Of a module, classifiers that are the tasks' own stay out of the file.
        expected = [name for name in plan.vectors.headers if name in self.stored.headers or not is_apart(name)]
        wanted = {name: plan.vectors.headers[name] for name in expected}
        names = self._chosen(expected)
        held_in = [getattr(torch, name) for name in made.evaluated_in]
        pieces = plan.only(set(names) & self.stored.headers.keys()).pieces()
        return replace(self, found=self_found)._compared(wanted, names, pieces, held_in)

    def _chosen(self, names: Sequence[str]) -> list[str]:
        if self.sample is None or self.sample >= len(names):
            return list(names)
        return random.Random(self.seed).sample(sorted(names), self.sample)

    def _compared(
        self,
        theirs: Mapping[str, TensorHeader],
        names: Sequence[str],
        pieces: Iterator[tuple[str, slice, Tensor]],
        held_in: Sequence[torch.dtype],
    ) -> Verification:
        ours = self.stored.headers
        differing = {name: self._alone(name) for name in ours if name not in theirs and not self._is_twin(name, theirs)}
        for name in theirs:
            if name not in ours:
                differing[name] = TensorDifference(note="is missing")
            elif ours[name] != theirs[name]:
                both = (f"{header.dtype} {list(header.shape)}" for header in (ours[name], theirs[name]))
                differing[name] = TensorDifference(note="is {}, expected {}".format(*both))
        fitting = ((name, elements, values) for name, elements, values in pieces if name not in differing)
        differing |= compare_pieces(self.stored, fitting, held_in)
        self.stored.require_unchanged()
        reasons = _reasons(self.found.made) if differing else ()
        return replace(self.found, tensors=len(theirs), compared=len(names), differing=differing, reasons=reasons)

    def _is_twin(self, name: str, theirs: Mapping[str, TensorHeader]) -> bool:
        """Whether a tensor of the file is one of those that should be there, under a further name, to the bit."""
        first = self.found.made.twins.get(name)
        if first is None or first not in theirs or self.stored.headers.get(first) != self.stored.headers[name]:
            return False
        both = (self.stored.read(each).reshape(-1).view(torch.uint8) for each in (name, first))
        return torch.equal(*both)

    def _alone(self, name: str) -> TensorDifference:
        first = self.found.made.twins.get(name)
        told = "is in the file alone" if first is None else f"is not {printable_name(first)}, which it is tied to"
        return TensorDifference(note=told)


def _reasons(made: Provenance) -> tuple[str, ...]:
    here = Provenance.current_versions()
    other = [f"{name} {version}" for name, version in made.versions.items() if here.get(name, version) != version]
    reasons = [f"It was made with {' and '.join(other)}, which may round otherwise."] if other else []
    return (*reasons, "Another device may round otherwise; a model or a prefix must be given as for the merge.")


def verification_text(found: Verification) -> str:
    """Return what was found in lines of text.

    Example:
        >>> print(verification_text(Verification("m", Provenance(), damaged={"m.safetensors": "it burnt."})))
        m.safetensors: it burnt.
    """
    lines = [f"{printable(file)}: {printable(problem)}" for file, problem in found.damaged.items()]
    lines += [
        f"{printable(file)}: it has no checksum, by which to tell whether it changed." for file in found.unchecked
    ]
    if not lines:
        count = f" ({found.files} files)" if found.files > 1 else ""
        lines.append(f"{printable(found.source)}{count} is whole: its bytes are those that were written.")
    if found.made.kind is not None:
        lines.append(printable(_description(found.made)))
    lines += [f"{printable_name(name)}: {printable(problem)}" for name, problem in found.inputs.items()]
    if found.tensors:
        lines.append(_comparison(found))
    elif found.inputs:
        lines.append("Not made again, as these are not its inputs.")
    for name, difference in found.differing.items():
        changed = " (changed after the merge, says the file)" if name in found.made.changed else ""
        lines.append(f"    {printable_name(name)}: {difference}{changed}")
    return "\n".join([*lines, *map(printable, found.reasons)])


def _comparison(found: Verification) -> str:
    of = f"{found.compared} of {found.tensors}" if found.compared < found.tensors else f"all {found.tensors}"
    if not found.differing:
        return f"Made again: {of} tensors, none of which differs."
    return f"Made again: {of} tensors. Of the file's {len(found.differing)} are not as made:"


def _description(made: Provenance) -> str:
    tasks = ", ".join(map(printable_name, made.tasks))
    versions = ", ".join(f"{name} {version}" for name, version in made.versions.items())
    by = f" with {versions}" if versions else ""
    if made.kind != "merged":
        kinds = {"base": "the base of a task vector", "adapter": f"an adapter, a merge of {tasks}"}
        return f"It is {kinds.get(str(made.kind), f'the task vector of {tasks}')}{by}."
    try:
        recipe = MergeRecipe.from_dict(made.recipe or {}).describe()
    except (TypeError, ValueError):  # of a rule that is not registered here
        recipe = str((made.recipe or {}).get("rule", "an unknown rule"))
    return f"It is a merge of {tasks} by {recipe}{by}."
