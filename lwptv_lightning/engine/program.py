"""What a compiled kernel does with a block, as read off a formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.functional import Formula, draw_limit

START: Any = object()
"""Where a block begins, in a formula, which holds for all blocks; no number, so that no formula reckons with it."""
NOTHING, FLOAT32, BFLOAT16, FLOAT32_DIFFERENCE, BFLOAT16_DIFFERENCE = range(5)
"""Kinds of sources: zeros, weights, from which the base is subtracted, or differences from it."""
NO_LIMITS, TRIM, BETWEEN, ABOVE = range(4)
"""Which values stay by their magnitude."""
SUM, MEAN_OF_AGREEING, SUM_OF_AGREEING, LARGEST_OF_AGREEING = range(4)
"""How the T values of an element become one."""
_REDUCTIONS = {"mean": MEAN_OF_AGREEING, "sum": SUM_OF_AGREEING, "max": LARGEST_OF_AGREEING}


@dataclass(frozen=True)
class Drop:
    """A random drop with a density; see `lwptv_lightning.functional.random_keep`."""

    density: float
    seed: int
    tasks: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class Between:
    """Keep what neither is among the smallest magnitudes of a tensor nor among the largest."""

    density: float
    outliers: float

    def ranks(self, elements: int) -> tuple[int, int]:
        """Return how many of a tensor's values rank below what is kept, and how many with that."""
        kept = int(self.density * elements)
        smallest = max(elements - kept - int(self.outliers * elements), 0)
        return smallest, smallest + kept


@dataclass(frozen=True)
class Above:
    """Keep a tensor's largest magnitudes."""

    density: float

    def ranks(self, elements: int) -> tuple[int]:
        """Return how many of a tensor's values rank below what is kept."""
        return (elements - int(elements * self.density),)


_RANKED = {"keep_middle": Between, "keep_largest": Above}


@dataclass(frozen=True)
class Weights:
    """Multiply each row by its number, ``(T,)`` float32, or divide it by that."""

    values: Tensor
    divides: bool = False


@dataclass(frozen=True, eq=False)
class Program:
    """The steps of a kernel, in their order; what is None does nothing.

    Attributes:
        tasks: The number of rows T.
        drop: Which elements stay by chance.
        limits: Which stay by their magnitude: at least a threshold for each task, ``(T,)``, or by rank in a tensor.
        weights: What the rows are multiplied with.
        reduction: How the rows become one.
        tie: The sign that is elected where rows cancel.
        consensus: ``tall_lambda`` and ``min_tasks`` of `lwptv_lightning.functional.keep_consensus`.
    """

    tasks: int
    drop: Drop | None = None
    limits: Tensor | Between | Above | None = None
    weights: Weights | None = None
    reduction: int = SUM
    tie: float = 0.0
    consensus: tuple[float, float] | None = None

    @property
    def is_by_task(self) -> bool:
        """Whether each row is treated by itself, whatever number of rows there is."""
        return self.drop is None and self.weights is None and not isinstance(self.limits, Tensor)

    def weighted(self, values: Tensor) -> Program | None:
        """Return the program of a sum of the rows times a number each, ``(T,)``; None where rows have numbers already.

        To multiply with two numbers is not to multiply with their product.
        """
        if self.weights is not None or self.reduction != SUM or self.consensus is not None:
            return None
        return replace(self, weights=Weights(values.to("cpu", torch.float32)))


def merging_program(rule: Callable[[Formula], Any], tasks: int, is_flat: bool = True) -> Program | None:
    """Return how a rule's formula makes one of T task vectors; None where no kernel does that.

    Args:
        rule: Computes the merged task vector of a stack.
        tasks: The number of task vectors.
        is_flat: Whether the rule gets stacks flattened.

    Example:
        >>> from lwptv_lightning.functional import sum_tasks
        >>> merging_program(lambda tau: sum_tasks(tau / 2), 2).weights.values
        tensor([2., 2.])
    """
    return _of(rule, Formula.of(tasks, is_flat), _reduced)


def magnitudes_program(values: Callable[[Formula], Any], tasks: int) -> Program | None:
    """Return the program for the magnitudes that a search goes through, ``abs(drop(tau))``; or None."""

    def of(result: Formula) -> Program:
        program = _filtered(_argument(result, "abs"))
        _require(program.weights is None and program.limits is None)
        return program

    return _of(values, Formula.of(tasks), of)


def voting_program(votes: Callable[[Formula], Any], tasks: int) -> Program | None:
    """Return the program of a sum of elected signs, ``sum(sign(sum_tasks(tau)))``; or None."""

    def of(result: Formula) -> Program:
        signs = _argument(_argument(result, "double"), "sum")
        program = _filtered(_argument(_argument(signs, "sign"), "sum_tasks"))
        _require(program.weights is None and isinstance(program.limits, Tensor | None))
        return program

    return _of(votes, Formula.of(tasks), of)


class _NoProgram(Exception):  # noqa: N818 (no error: there is another way)
    """A formula that no kernel computes."""


def _of(function: Callable[[Formula], Any], tau: Formula, read: Callable[[Formula], Program]) -> Program | None:
    try:
        return read(function(tau))
    except Exception:  # whatever is wrong is told where the function is called with tensors
        return None


def _require(fits: bool) -> None:
    if not fits:
        raise _NoProgram


def _argument(formula: Any, operation: str) -> Any:
    _require(isinstance(formula, Formula) and formula.operation == operation)
    return formula.arguments[0]


def _reduced(formula: Formula) -> Program:
    if formula.operation == "sum_tasks":
        return _filtered(formula.arguments[0])
    if formula.operation == "combine_agreeing":
        rows, signs, reduce = formula.arguments
        _require(_argument(signs, "elect_signs") is rows)
        return replace(_filtered(rows), reduction=_REDUCTIONS[reduce], tie=float(signs.arguments[1]))
    if formula.operation == "keep_consensus":
        rows, merged, tall_lambda, min_tasks = formula.arguments
        _require(rows.operation == "tau" and tall_lambda >= 0)
        return replace(_reduced(merged), consensus=(float(tall_lambda), float(min_tasks)))
    raise _NoProgram


def _filtered(formula: Formula) -> Program:
    """Return the program of what is done to the rows one by one."""
    if formula.operation == "tau":
        return Program(formula.tasks)
    before, *arguments = formula.arguments
    program = _filtered(before)
    _require(program.weights is None)
    if formula.operation in ("mul", "div"):
        return replace(program, weights=_weights(arguments[0], program.tasks, formula.operation == "div"))
    _require(program.limits is None)
    if formula.operation == "trim":
        thresholds = arguments[0]
        _require(thresholds.shape == (program.tasks,))  # one for all tasks would be broadcast
        return replace(program, limits=thresholds.to("cpu", torch.float32))
    _require(program.drop is None)
    if formula.operation == "drop_at_random":
        density, seed, tasks, name, start = arguments
        _require(start is START and len(tasks) == program.tasks and isinstance(density, float | int))
        # A density next to 1 keeps everything, and 1 is what it rounds to in float32.
        everything = draw_limit(float(density)) >> 32
        return replace(program, drop=None if everything else Drop(float(density), seed, tuple(tasks), name))
    _require(formula.operation in _RANKED and 0 <= arguments[0] <= 1 and arguments[-1] >= 0)
    return replace(program, limits=_RANKED[formula.operation](*arguments))


def _weights(factor: Any, tasks: int, divides: bool) -> Weights:
    if isinstance(factor, Tensor):
        _require(factor.shape == (tasks, 1) and not divides and not factor.requires_grad)
        _require(torch.promote_types(factor.dtype, torch.float32) == torch.float32)  # what the product has
        return Weights(factor.reshape(tasks).to("cpu", torch.float32))
    _require(isinstance(factor, float | int))
    # Whatever dtype and device are torch's defaults.
    return Weights(torch.full((tasks,), float(factor), dtype=torch.float32, device="cpu"), divides)
