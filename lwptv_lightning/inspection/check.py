"""``lwptv check``: whether checkpoints belong together, before anything is merged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.table import Column, Table
from torch import nn

from lwptv_lightning.checkpoints import TAKEN, Checkpoint, CheckpointSource, is_adapter, sizes_told, some_of
from lwptv_lightning.engine import spans
from lwptv_lightning.inspection.permuted import is_permuted
from lwptv_lightning.inspection.tables import cell
from lwptv_lightning.registry import matcher, natural_order, printable_name, steps_of
from lwptv_lightning.task_vectors import (
    KEPT,
    UNLIKE,
    Aligned,
    Judgement,
    align,
    differing,
    find_ties,
    judge,
    measure,
    quantized_apart,
    same_weights,
    state_among,
    whole_as_difference,
)

SAME_BASE = "same base"
_BLOCK_BYTES = 1 << 24
"""What is read at a time of all tasks together, in float64."""


@dataclass(frozen=True)
class TaskCheck:
    """What `check` found of one task.

    Attributes:
        task: Its name.
        format: What kind of file it is, and which weights were taken of one that holds averaged and last ones.
        matched: How many tensors of the base it has, in the base's shape.
        missing: Tensors that only the base has.
        extra: Tensors that only the task has.
        reshaped: Tensors of another shape, each with both shapes.
        dtypes: The dtypes of its floating tensors.
        norm: Norm of the task vector relative to the base's, of the weights as what follows; None where none was read.
        unchanged: Fraction of the tensors that equal the base's, in [0, 1].
        cosines: Cosine of the task vector to each other task's.
        outliers: Tensor name to what sets it apart from the task's others: zeroed, another constant, many times as
            large, permuted, or unlike the base's, such as one that was initialised anew; or that it is no floating
            number, so that the base's is kept, and not the same.
        verdict: ``"same base"``, or what is wrong.
    """

    task: str
    format: str = "?"
    matched: int = 0
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    norm: float | None = None
    unchanged: float | None = None
    cosines: Mapping[str, float] | None = None
    outliers: Mapping[str, str] = field(default_factory=dict)
    verdict: str = SAME_BASE

    @property
    def passed(self) -> bool:
        """Whether the task can be merged."""
        return self.verdict == SAME_BASE


def check(
    base: CheckpointSource,
    tasks: Mapping[str, CheckpointSource],
    *,
    exclude: Sequence[str] = (),
    model: nn.Module | None = None,
    prefix: str | None = None,
    ema: bool | None = None,
    resize_position_embedding: bool = False,
    read: bool = True,
) -> list[TaskCheck]:
    """Compare fine-tuned checkpoints with their base and with each other.

    Args:
        base: The pre-trained weights; for this and what follows see `lwptv_lightning.TaskVectors.open`.
        tasks: Task name to fine-tuned weights.
        exclude: Globs of tensors that are not merged.
        model: The module that the weights belong to.
        prefix: What the wanted names start with.
        ema: Whether to take averaged weights.
        resize_position_embedding: Whether to resample what is of another image size.
        read: Whether to read the tensors, in one pass, for the figures; the rest comes from the headers.

    Returns:
        One finding for each task; a checkpoint that cannot be opened is one too.

    Raises:
        CheckpointError: The base cannot be opened, does not fit the model, or has no floating tensor to merge.
        ValueError: There is no task, or an ``exclude`` pattern matches no tensor.

    Example:
        >>> base = {"w": torch.eye(2)}
        >>> found = check(base, {"a": {"w": 2 * torch.eye(2)}, "b": {"v": torch.eye(2)}})
        >>> [(task.task, task.norm, task.verdict) for task in found]
        [('a', 1.0, 'same base'), ('b', None, 'misses w. has beyond the base v.')]
    """
    options: dict[str, Any] = {"exclude": exclude, "model": model, "prefix": prefix, "ema": ema}
    aligned = align(base, tasks, **options, resize_position_embedding=resize_position_embedding, strict=False)
    aligned.shared()  # as a merge, refuses where nothing is left
    findings = {task: _from_headers(task, aligned, read) for task in map(str, tasks)}
    if read and aligned.experts:
        findings |= _with_figures(findings, aligned, model)
        aligned.require_unchanged()
    return list(findings.values())


def _from_headers(task: str, aligned: Aligned, read: bool) -> TaskCheck:
    format = _format_of(aligned.opened[task]) if task in aligned.opened else "?"
    if task in aligned.failures:
        return TaskCheck(task, format, verdict=str(aligned.failures[task]))
    wrong = quantized_apart(aligned.base, aligned.experts[task], matcher(aligned.ignored), read=read)
    ours, theirs, compared = aligned.base.headers, aligned.experts[task].headers, aligned.compare(task)

    def both(names: Sequence[str], what: str) -> tuple[str, ...]:
        return tuple(f"{name} {getattr(theirs[name], what)} for {getattr(ours[name], what)}" for name in names)

    reshaped, other_kind = both(compared.reshaped, "shape"), both(compared.other_kind, "dtype")
    problems = {"misses ": compared.missing, "has beyond the base ": compared.extra}
    problems |= {"other shapes: ": reshaped, "other kinds: ": other_kind}
    floating = dict.fromkeys(head.dtype for head in theirs.values() if head.dtype.is_floating_point)
    dtypes = tuple(str(dtype).removeprefix("torch.") for dtype in floating)
    matched = len(compared.matched + compared.other_kind)
    told = " ".join(words + some_of(names, 3) for words, names in problems.items() if names)
    verdict = wrong or told + sizes_told(compared.reshaped, theirs, ours) or SAME_BASE
    return TaskCheck(task, format, matched, compared.missing, compared.extra, reshaped, dtypes, verdict=verdict)


def _format_of(checkpoint: Checkpoint) -> str:
    if is_adapter(checkpoint):
        return "LoRA adapter" if any(".lora_" in name for name in checkpoint.names) else "adapter"
    # Not `is_task_vector`, which refuses broken metadata: that is a finding here.
    if checkpoint.metadata.get("lwptv_kind") == "task_vector":
        return "task vector"
    return checkpoint.format if checkpoint.averaged is None else f"{checkpoint.format}, {TAKEN[checkpoint.averaged]}"


def _with_figures(findings: Mapping[str, TaskCheck], aligned: Aligned, model: nn.Module | None) -> dict[str, TaskCheck]:
    """Add norms, cosines and what follows from them to the findings of the T tasks that could be aligned."""
    base, experts = aligned.base, aligned.experts
    names, unmerged = aligned.shared()
    state = state_among(names, model, base.read)
    fitting = [set(aligned.compare(task).matched) for task in experts]
    tied = find_ties(base, experts, set(names).intersection(*fitting), model, strict=False)
    figures = {}
    total = sum(base.headers[name].numel for name in names)
    each_name = steps_of(natural_order(names), "Reading", total, lambda name: base.headers[name].numel)
    for name in each_name:  # so that sums round alike whatever the order of a file
        if name not in state.computed and name not in tied:
            having = [each if name in fits else None for each, fits in zip(experts.values(), fitting, strict=True)]
            parts = spans(base.headers[name].numel, 8 * (1 + len(having)), _BLOCK_BYTES)
            figures[name] = measure(name, base, having, parts)
    averaged = {name: figures.pop(name) for name in state.averaged if name in figures}
    gram = sum((each.gram for each in figures.values()), torch.zeros(1 + len(experts), 1 + len(experts)).double())
    norms = gram.diagonal().sqrt()
    cosines = gram / (norms[:, None] * norms).clamp_min(1e-300)
    found = {}
    for row, task in enumerate(experts, start=1):
        own = {name: each for name, each in figures.items() if name in fitting[row - 1]}
        if not findings[task].matched:
            continue
        unchanged = sum(not each.gram[row, row] for each in own.values()) / max(len(own), 1)
        judged = judge(own, row - 1)
        broken = [
            name
            for name, each in (own | averaged).items()
            if not torch.isfinite(each.gram[0, row] + each.gram[row, row])
        ]
        twins = [other for i, other in enumerate(experts) if i < row - 1 and same_weights(own, row - 1, i)]
        fixed = differing([name for name in unmerged if name in fitting[row - 1]], base, experts[task])
        outliers = {name: _kind(what, name, base, experts[task]) for name, what in judged.outliers.items()}
        outliers |= dict.fromkeys(fixed, KEPT)
        found[task] = replace(
            findings[task],
            norm=float(norms[row] / norms[0]) if norms[0] else math.inf,
            unchanged=unchanged,
            cosines={other: float(cosines[row, i]) for i, other in enumerate(experts, start=1) if i != row},
            outliers=outliers | dict.fromkeys(broken, "NaN or infinite"),
            verdict=(whole_as_difference(own, row - 1) if experts[task].is_sum else "")
            or _verdict(findings[task], replace(judged, finite=not broken, outliers=outliers), unchanged, twins),
        )
    return found


def _kind(what: str, name: str, base: Checkpoint, expert: Checkpoint) -> str:
    """Tell permuted tensors from those that were initialised anew."""
    if what != UNLIKE:
        return what
    return "permuted" if is_permuted(base.read(name), expert.read(name)) else "re-initialised"


def _verdict(found: TaskCheck, judged: Judgement, unchanged: float, twins: Sequence[str]) -> str:
    if not judged.finite:
        return "NaN or infinite weights."
    if not found.passed:
        return found.verdict
    if unchanged == 1:
        return "equals the base."
    if twins:
        return f"has the same weights as {printable_name(twins[0])}."
    return judged.told or found.verdict


def check_tables(findings: Sequence[TaskCheck]) -> list[Table]:
    """Return the findings as tables for a terminal: one of the tasks, then of their cosines and of outliers, if any."""
    table = Table(header_style="bold", pad_edge=False)
    for heading in ("task", "format", "matched", "missing", "extra", "shapes", "dtype", "norm", "unchanged", "verdict"):
        text = heading in ("task", "format", "dtype", "verdict")
        table.add_column(heading, justify="left" if text else "right", overflow="fold")
    for found in findings:
        counts = [str(len(names)) for names in (found.missing, found.extra, found.reshaped)]
        norm = "" if found.norm is None else f"{found.norm:.3g}"
        unchanged = "" if found.unchanged is None else f"{100 * found.unchanged:.0f} %"
        dtypes = ", ".join(found.dtypes)
        cells = found.format, str(found.matched), *counts, dtypes, norm, unchanged
        table.add_row(cell(printable_name(found.task)), *cells, cell(found.verdict))
    return [table, *_cosine_table(findings), *_outlier_table(findings)]


def _cosine_table(findings: Sequence[TaskCheck]) -> Iterator[Table]:
    cosines_of = {found.task: found.cosines for found in findings if found.cosines is not None}
    if len(cosines_of) < 2:
        return
    columns = [Column(cell(printable_name(task)), justify="right") for task in cosines_of]
    cosines = Table("", *columns, title="Cosines of the task vectors", header_style="bold", pad_edge=False)
    for task, row in cosines_of.items():
        cosines.add_row(
            cell(printable_name(task)), *(f"{row[other]:.2f}" if other in row else "" for other in cosines_of)
        )
    yield cosines


def _outlier_table(findings: Sequence[TaskCheck]) -> Iterator[Table]:
    table = Table("task", "tensor", "outlier", title="Tensors that stand out", header_style="bold", pad_edge=False)
    for found in findings:
        for name, what in found.outliers.items():
            table.add_row(*map(cell, (printable_name(found.task), printable_name(name), what)))
    if table.row_count:
        yield table
