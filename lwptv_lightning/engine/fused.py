"""Programs run on stacks by compiled kernels, in one pass over the bytes of the sources."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lwptv_lightning.engine.program import (
    ABOVE,
    BETWEEN,
    BFLOAT16,
    BFLOAT16_DIFFERENCE,
    FLOAT32,
    FLOAT32_DIFFERENCE,
    NO_LIMITS,
    TRIM,
    Above,
    Between,
    Drop,
    Program,
)
from lwptv_lightning.functional import draw_key, draw_limit
from lwptv_lightning.task_vectors import Stack

_KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
"""A source's dtype to its kind, where it is weights."""
_DIFFERENCES = {torch.float32: FLOAT32_DIFFERENCE, torch.bfloat16: BFLOAT16_DIFFERENCE}
"""The same where it is a difference already."""
FUSED_BASES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of a base to which float32 values are added without loss."""
_KEYED = 1 << 32
"""Positions that share the key of a random draw."""

Submit = Callable[..., Future[Any]]
Limits = tuple[Any, ...]


class UnfusableError(Exception):
    """Only the plain way will do: it tells which value is NaN or infinite, and draws where the keys change."""


@cache
def kernels_exist() -> bool:
    """Tell whether numba is there to compile kernels."""
    return find_spec("numba") is not None


@dataclass(frozen=True)
class Sources:
    """Elements of a stack as kernels take them.

    Attributes:
        arguments: What kernels share; see `lwptv_lightning.engine.kernels`.
        held: What must live as long as its addresses are in use.
    """

    arguments: tuple[Any, ...]
    held: list[Tensor]

    @classmethod
    def of(cls, stack: Stack, elements: slice) -> Sources:
        """Read elements of a stack where they lie, or copies of those that kernels cannot read."""
        base, rows = stack.operands(elements)
        base = _readable(base)
        held, addresses, kinds = [base], np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        for index, row in enumerate(rows):
            if row is None:
                continue
            values, is_difference = _readable(row[0]), row[1]
            held.append(values)
            addresses[index] = values.data_ptr()
            kinds[index] = (_DIFFERENCES if is_difference else _KINDS)[values.dtype]
        arguments = (addresses, kinds, base.data_ptr(), _KINDS[base.dtype], elements.start, len(base))
        return cls(arguments, held)


def _readable(values: Tensor) -> Tensor:
    """Return values as kernels read them: float32 or bfloat16, one after the other in the host's memory."""
    return values.to("cpu", values.dtype if values.dtype in _KINDS else torch.float32).contiguous()


def merge_fused(
    program: Program, stack: Stack, elements: slice, limits: Limits | None = None, scale: float | None = None
) -> Tensor:
    """Merge some elements of a stack, ``(n,)`` float32; with a scale, its multiple is added to the base.

    Args:
        program: What to do.
        stack: The task vectors.
        elements: Which elements.
        limits: What `begin_limits` found, where the program ranks the elements of a tensor.
        scale: The coefficient of the merged task vector.

    Raises:
        UnfusableError: A value is NaN or infinite, or the keys of the draws change.
    """
    from lwptv_lightning.engine import kernels

    sources = Sources.of(stack, elements)
    out = np.empty(sources.arguments[-1], np.float32)
    weights = np.empty(0, np.float32) if program.weights is None else program.weights.values.numpy()
    tall_lambda, least = program.consensus or (-1.0, 0.0)
    broken = kernels.combine(
        sources.arguments,
        _drop_arguments(program.drop, elements),
        _trim_arguments(program) if limits is None else limits,
        (weights, program.weights is not None and program.weights.divides),
        (program.reduction, np.float32(program.tie)),
        (np.float32(tall_lambda), np.float32(least)),
        np.float32(np.nan if scale is None else scale),
        out,
    )
    return torch.from_numpy(_sound(out, broken))


def vote_fused(program: Program, stack: Stack, elements: slice) -> Tensor:
    """Return the sum of the signs of the sums over tasks, a float64 number.

    Raises:
        UnfusableError: A value is NaN or infinite, or the keys of the draws change.
    """
    from lwptv_lightning.engine import kernels

    sources = Sources.of(stack, elements)
    net, broken = kernels.vote(sources.arguments, _drop_arguments(program.drop, elements), _trim_arguments(program))
    return torch.tensor(_sound(net, broken), dtype=torch.float64)


def gather_fused(program: Program, stack: Stack, elements: slice, low: Any, high: Any) -> tuple[Any, list[Any]]:
    """Count and gather magnitudes around brackets.

    Args:
        program: Its drop alone counts.
        stack: The task vectors.
        elements: Which elements.
        low: Each task's low end, ``(T,)``.
        high: Its high end, ``(T,)``.

    Returns:
        How many magnitudes are below each low end and at it, ``(T, 2)``; and those above it up to the high end, T
        arrays.

    Raises:
        UnfusableError: A value is NaN or infinite, or the keys of the draws change.
    """
    from lwptv_lightning.engine import ranking_kernels

    sources, tasks = Sources.of(stack, elements), program.tasks
    # Only what is written to takes memory.
    found, counts = np.empty((tasks, sources.arguments[-1]), np.float32), np.zeros((tasks, 3), np.int64)
    drop = _drop_arguments(program.drop, elements)
    broken = ranking_kernels.gather(sources.arguments, drop, low, high, found, counts)
    inside = [found[task, : counts[task, 2]].copy() for task in range(tasks)]
    return _sound(counts[:, :2], broken), inside


def statistics_fused(stack: Stack, elements: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums over some elements, in float64; see `lwptv_lightning.saliency.LayerStatistics`.

    Returns:
        Inner products ``(T, T)``; L1 norms, agreeing, opposing, squares of deviations and their products with the mean
        ``(5, T)``; and the base's squares ``()``.

    Raises:
        UnfusableError: A value is NaN or infinite.
    """
    from lwptv_lightning.engine import statistics_kernel

    sources, tasks = Sources.of(stack, elements), stack.shape[0]
    gram, sums = np.zeros((tasks, tasks)), np.zeros((5, tasks))
    base_squared, broken = statistics_kernel.statistics(sources.arguments, gram, sums)
    squared = torch.tensor(_sound(base_squared, broken), dtype=torch.float64)
    return torch.from_numpy(gram), torch.from_numpy(sums), squared


def begin_limits(submit: Submit, program: Program, stack: Stack) -> Callable[[], Limits] | None:
    """Begin to search each task's tensor for the magnitudes between which a program keeps values.

    Args:
        submit: Begins a call, as `lwptv_lightning.engine.Threads.submit` does.
        program: What to do.
        stack: The task vectors of a whole tensor.

    Returns:
        What waits for the limits, and raises `UnfusableError` for a value that is NaN or infinite; None where the
        program does not rank the elements of tensors.
    """
    if not isinstance(program.limits, Between | Above):
        return None
    ranks = np.array(program.limits.ranks(len(stack.base)), np.int64)
    kind, first_stay = (BETWEEN, False) if isinstance(program.limits, Between) else (ABOVE, True)
    rows = [submit(_limits_of, stack, task, ranks, first_stay) for task in range(program.tasks)]

    def found() -> Limits:
        values, places = zip(*(row.result() for row in rows), strict=True)
        return kind, np.ascontiguousarray(np.stack(values, 1)), np.ascontiguousarray(np.stack(places, 1))

    return found


def _limits_of(stack: Stack, task: int, ranks: Any, first_stay: bool) -> Any:
    from lwptv_lightning.engine import ranking_kernels

    sources = Sources.of(stack.only(task), slice(0, len(stack.base)))
    values, places = np.zeros(len(ranks), np.float32), np.zeros(len(ranks), np.int64)
    broken = ranking_kernels.limits(sources.arguments, ranks, first_stay, values, places)
    return _sound((values, places), broken)


def _drop_arguments(drop: Drop | None, elements: slice) -> tuple[Any, ...]:
    if drop is None:
        return np.empty((0, 2), np.int64), 0, np.float32(1)
    if elements.start // _KEYED != max(elements.stop - 1, elements.start) // _KEYED:
        raise UnfusableError
    keys = [draw_key(drop.seed, task, drop.name, elements.start) for task in drop.tasks]
    return np.array(keys, np.int64), draw_limit(drop.density), np.float32(drop.density)


def _trim_arguments(program: Program) -> Limits:
    places = np.empty((0, 0), np.int64)
    if not isinstance(program.limits, Tensor):
        return NO_LIMITS, np.empty((0, 0), np.float32), places
    return TRIM, program.limits.numpy()[None], places


def _sound(value: Any, broken: bool) -> Any:
    if broken:
        raise UnfusableError
    return value
