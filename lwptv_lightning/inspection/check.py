"""``lwptv check``: whether checkpoints belong together, before anything is merged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from lwptv_lightning.checkpoints import Checkpoint, CheckpointSource, is_adapter, is_task_vector, some_of
from lwptv_lightning.task_vectors import align_base, align_expert, differing_classifiers, open_unprefixed

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
        norm: Norm of the task vector relative to the base's; None where no tensor was read.
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

    Names, shapes and dtypes come from the headers; the figures need one streaming pass over the tensors.

    Args:
        base: The pre-trained weights; for this and what follows see `lwptv_lightning.TaskVectors.open`.
        tasks: Task name to fine-tuned weights.
        exclude: Globs of tensors that are not merged.
        model: The module that the weights belong to.
        prefix: What the wanted names start with.
        ema: Whether to take averaged weights.
        read: Whether to read tensors at all.

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
    raw_base = open_unprefixed(base, prefix)
    opened_base = align_base(raw_base, model)
    formats: dict[str, str] = {}
    failures: dict[str, str] = {}
    experts: dict[str, Checkpoint] = {}
    for task, source in tasks.items():
        try:
            expert = open_unprefixed(source, prefix, ema)
            formats[task] = format_of(expert)
            experts[task] = align_expert(expert, raw_base, opened_base, model)
        except (ValueError, OSError, TypeError) as error:
            failures[task] = str(error)
    ignored = [*exclude, *(f"{path}.*" for path in differing_classifiers(model, opened_base, experts, exclude))]
    headers = {task: _compare_headers(task, opened_base, expert, ignored) for task, expert in experts.items()}
    figures = _Figures.of(opened_base, experts, ignored) if read and experts else None
    findings = []
    for task in tasks:
        if task in failures:
            findings.append(TaskCheck(task, formats.get(task, "?"), verdict=failures[task]))
        else:
            found = _with_figures(headers[task], figures) if figures else headers[task]
            findings.append(replace(found, format=formats[task]))
    return findings


def format_of(checkpoint: Checkpoint) -> str:
    """Return in a word or two what kind of file a checkpoint was opened from.

    Example:
        >>> from lwptv_lightning import open_checkpoint
        >>> format_of(open_checkpoint({"w": torch.ones(1)}))
        'in memory'
    """
    if is_adapter(checkpoint):
        return "LoRA adapter"
    if is_task_vector(checkpoint):
        return "task vector"
    if checkpoint.is_lightning:
        return "Lightning"
    for suffix, name in ((".index.json", "sharded safetensors"), (".safetensors", "safetensors")):
        if checkpoint.source.endswith(suffix):
            return name
    return "torch" if "." in checkpoint.source else "in memory"


@dataclass(frozen=True)
class _Figures:
    """Inner products over all compared tensors, and counts of tensors that equal the base's."""

    tasks: tuple[str, ...]
    gram: Tensor  # (T, T), of the task vectors
    base_norm: float
    cosines_to_base: Tensor  # (T,), of the fine-tuned weights
    unchanged: Tensor  # (T,), fractions

    @classmethod
    def of(cls, base: Checkpoint, experts: Mapping[str, Checkpoint], ignored: Sequence[str]) -> _Figures:
        names = [name for name in base.names if base.headers[name].dtype.is_floating_point]
        names = [name for name in names if not _matches(name, ignored)]
        gram = torch.zeros(len(experts), len(experts), dtype=torch.float64)
        along = torch.zeros(len(experts), dtype=torch.float64)
        along_base = torch.zeros(len(experts), dtype=torch.float64)
        unchanged, shared = torch.zeros(len(experts)), torch.zeros(len(experts))
        base_square = 0.0
        for name in names:
            weights = base.read(name).float()
            tau = torch.zeros(len(experts), *weights.shape)
            has = torch.tensor([_fits(expert, base, name) for expert in experts.values()])
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
        cosines = (along_base + along) / (along_base * own).clamp_min(1e-300).sqrt()
        return cls(tuple(experts), gram, math.sqrt(base_square), cosines, unchanged / shared.clamp_min(1))


def _with_figures(found: TaskCheck, figures: _Figures) -> TaskCheck:
    if found.matched == 0:
        return found
    row = figures.tasks.index(found.task)
    norms = figures.gram.diagonal().sqrt()
    cosines = figures.gram[row] / (norms[row] * norms).clamp_min(1e-300)
    verdict = found.verdict
    if not torch.isfinite(norms[row]):
        verdict = "NaN or infinite weights."
    elif found.passed and figures.unchanged[row] == 1:
        verdict = "equals the base."
    elif found.passed and figures.cosines_to_base[row] < _LEAST_COSINE:
        verdict = f"another base: cosine {float(figures.cosines_to_base[row]):.2f} to its weights."
    return replace(
        found,
        norm=float(norms[row]) / figures.base_norm if figures.base_norm else math.inf,
        unchanged=float(figures.unchanged[row]),
        cosines={other: float(cosines[i]) for i, other in enumerate(figures.tasks) if i != row},
        verdict=verdict,
    )


def _compare_headers(task: str, base: Checkpoint, expert: Checkpoint, ignored: Sequence[str]) -> TaskCheck:
    wanted = [name for name in base.names if not _matches(name, ignored)]
    given = [name for name in expert.names if not _matches(name, ignored)]
    missing = tuple(name for name in wanted if name not in expert.headers)
    extra = tuple(name for name in given if name not in base.headers)
    reshaped = tuple(
        f"{name} {expert.headers[name].shape} for {base.headers[name].shape}"
        for name in wanted
        if name in expert.headers and expert.headers[name].shape != base.headers[name].shape
    )
    problems = (("misses ", missing), ("has beyond the base ", extra), ("other shapes: ", reshaped))
    floating = dict.fromkeys(head.dtype for head in expert.headers.values() if head.dtype.is_floating_point)
    return TaskCheck(
        task,
        matched=len(wanted) - len(missing) - len(reshaped),
        missing=missing,
        extra=extra,
        reshaped=reshaped,
        dtypes=tuple(str(dtype).removeprefix("torch.") for dtype in floating),
        verdict=" ".join(words + some_of(names, 3) for words, names in problems if names) or SAME_BASE,
    )


def _fits(expert: Checkpoint, base: Checkpoint, name: str) -> bool:
    return name in expert.headers and expert.headers[name].shape == base.headers[name].shape


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
