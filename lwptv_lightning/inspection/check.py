"""``lwptv check``: whether checkpoints belong together, before anything is merged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from rich.table import Column, Table
from torch import nn

from lwptv_lightning.checkpoints import Checkpoint, CheckpointSource, is_adapter, is_task_vector, some_of
from lwptv_lightning.registry import matches, natural_order
from lwptv_lightning.task_vectors import Aligned, align, state_among

SAME_BASE = "same base"
_LEAST_COSINE = 0.5
"""Fine-tuned weights point where their base's do; independent initialisations are nearly orthogonal."""


@dataclass(frozen=True)
class TaskCheck:
    """What `check` found of one task.

    Attributes:
        task: Its name.
        format: What kind of file it is.
        matched: How many tensors of the base it has, in the base's shape.
        missing: Tensors that only the base has.
        extra: Tensors that only the task has.
        reshaped: Tensors of another shape, each with both shapes.
        dtypes: The dtypes of its floating tensors.
        norm: Norm of the task vector relative to the base's, of the weights as what follows; None where none was read.
        unchanged: Fraction of the tensors that equal the base's, in [0, 1].
        cosines: Cosine of the task vector to each other task's.
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
        read: Whether to read the tensors, in one pass, for the figures; the rest comes from the headers.

    Returns:
        One finding for each task; a checkpoint that cannot be opened is one too.

    Raises:
        CheckpointError: The base cannot be opened.

    Example:
        >>> base = {"w": torch.eye(2)}
        >>> found = check(base, {"a": {"w": 2 * torch.eye(2)}, "b": {"v": torch.eye(2)}})
        >>> [(task.task, task.norm, task.verdict) for task in found]
        [('a', 1.0, 'same base'), ('b', None, 'misses w. has beyond the base v.')]
    """
    aligned = align(base, tasks, exclude=exclude, model=model, prefix=prefix, ema=ema, strict=False)
    findings = {task: _from_headers(task, aligned) for task in tasks}
    if read and aligned.experts:
        findings |= _with_figures(findings, aligned, model)
    return list(findings.values())


def _from_headers(task: str, aligned: Aligned) -> TaskCheck:
    format = _format_of(aligned.opened[task]) if task in aligned.opened else "?"
    if task in aligned.failures:
        return TaskCheck(task, format, verdict=str(aligned.failures[task]))
    ours, theirs, compared = aligned.base.headers, aligned.experts[task].headers, aligned.compare(task)

    def both(names: Sequence[str], what: str) -> tuple[str, ...]:
        return tuple(f"{name} {getattr(theirs[name], what)} for {getattr(ours[name], what)}" for name in names)

    reshaped, other_kind = both(compared.reshaped, "shape"), both(compared.other_kind, "dtype")
    problems = {"misses ": compared.missing, "has beyond the base ": compared.extra}
    problems |= {"other shapes: ": reshaped, "other kinds: ": other_kind}
    floating = dict.fromkeys(head.dtype for head in theirs.values() if head.dtype.is_floating_point)
    dtypes = tuple(str(dtype).removeprefix("torch.") for dtype in floating)
    matched = len(compared.matched + compared.other_kind)
    verdict = " ".join(words + some_of(names, 3) for words, names in problems.items() if names) or SAME_BASE
    return TaskCheck(task, format, matched, compared.missing, compared.extra, reshaped, dtypes, verdict=verdict)


def _format_of(checkpoint: Checkpoint) -> str:
    if is_adapter(checkpoint):
        return "LoRA adapter"
    return "task vector" if is_task_vector(checkpoint) else checkpoint.format


def _weights_of(aligned: Aligned, model: nn.Module | None) -> list[str]:
    """Return the tensors of the base that a merge takes for weights."""
    headers = aligned.base.headers
    # In natural order, so that sums round alike whatever the order of a file.
    floating = [
        n for n in natural_order(headers) if headers[n].dtype.is_floating_point and not matches(n, aligned.ignored)
    ]
    state = state_among(floating, model, aligned.base.read)
    return [name for name in floating if name not in state]


def _with_figures(findings: Mapping[str, TaskCheck], aligned: Aligned, model: nn.Module | None) -> dict[str, TaskCheck]:
    """Add norms, cosines and what follows from them to the findings of the T tasks that could be aligned."""
    base, experts = aligned.base, aligned.experts
    matched = [set(aligned.compare(task).matched) for task in experts]
    gram = torch.zeros(len(experts), len(experts), dtype=torch.float64)  # (T, T), of the task vectors
    along, along_base = torch.zeros(2, len(experts), dtype=torch.float64)
    unchanged, shared = torch.zeros(2, len(experts))
    base_square = 0.0
    for name in _weights_of(aligned, model):
        weights = base.read(name).float()
        tau = torch.zeros(len(experts), *weights.shape)
        has = torch.tensor([name in fitting for fitting in matched])
        for row, expert, fits in zip(tau, experts.values(), has.tolist(), strict=True):
            if fits:
                expert.subtract(name, weights, row)
        rows, flat = tau.reshape(len(experts), -1), weights.reshape(-1)
        square = float(flat.square().sum(dtype=torch.float64))
        gram += (rows @ rows.T).double()
        base_square += square
        along += (rows @ flat).double()
        along_base += square * has
        unchanged += has * (rows == 0).all(1)
        shared += has
    own = along_base + 2 * along + gram.diagonal()
    to_base = (along_base + along) / (along_base * own).clamp_min(1e-300).sqrt()  # (T,), of the fine-tuned weights
    norms, unchanged = gram.diagonal().sqrt(), unchanged / shared.clamp_min(1)
    cosines = gram / (norms[:, None] * norms).clamp_min(1e-300)
    return {
        task: replace(
            findings[task],
            norm=float(norms[row]) / math.sqrt(base_square) if base_square else math.inf,
            unchanged=float(unchanged[row]),
            cosines={other: float(cosines[row, i]) for i, other in enumerate(experts) if i != row},
            verdict=_verdict(findings[task], float(norms[row]), float(unchanged[row]), float(to_base[row])),
        )
        for row, task in enumerate(experts)
        if findings[task].matched
    }


def _verdict(found: TaskCheck, norm: float, unchanged: float, cosine_to_base: float) -> str:
    if not math.isfinite(norm):
        return "NaN or infinite weights."
    if found.passed and unchanged == 1:
        return "equals the base."
    if found.passed and cosine_to_base < _LEAST_COSINE:
        return f"another base: cosine {cosine_to_base:.2f} to its weights."
    return found.verdict


def check_tables(findings: Sequence[TaskCheck]) -> list[Table]:
    """Return the findings as tables for a terminal: one of the tasks, one of their cosines where there are several."""
    table = Table(header_style="bold", pad_edge=False)
    for heading in ("task", "format", "matched", "missing", "extra", "shapes", "dtype", "norm", "unchanged", "verdict"):
        text = heading in ("task", "format", "dtype", "verdict")
        table.add_column(heading, justify="left" if text else "right", overflow="fold")
    for found in findings:
        counts = [str(len(names)) for names in (found.missing, found.extra, found.reshaped)]
        norm = "" if found.norm is None else f"{found.norm:.3g}"
        unchanged = "" if found.unchanged is None else f"{100 * found.unchanged:.0f} %"
        dtypes = ", ".join(found.dtypes)
        table.add_row(found.task, found.format, str(found.matched), *counts, dtypes, norm, unchanged, found.verdict)
    cosines_of = {found.task: found.cosines for found in findings if found.cosines is not None}
    if len(cosines_of) < 2:
        return [table]
    columns = [Column(task, justify="right") for task in cosines_of]
    cosines = Table("", *columns, title="Cosines of the task vectors", header_style="bold", pad_edge=False)
    for task, row in cosines_of.items():
        cosines.add_row(task, *(f"{row[other]:.2f}" if other in row else "" for other in cosines_of))
    return [table, cosines]
