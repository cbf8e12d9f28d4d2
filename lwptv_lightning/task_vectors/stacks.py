"""The T task vectors of one tensor, read whole or in blocks of its flattened elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Stack(Protocol):
    """The task vectors of one tensor, wherever they come from."""

    @property
    def shape(self) -> tuple[int, ...]:
        """T, then the tensor's shape."""
        ...

    def sources(self, elements: slice) -> list[Tensor]:
        """Return what some elements of the flattened task vectors are made of: the base's elements, then others."""
        ...

    def tau(self, sources: Sequence[Tensor]) -> Tensor:
        """Make elements of the task vectors of their sources, or of copies of these, ``(T, n)``, freshly made."""
        ...

    def task(self, index: int) -> Tensor:
        """Return one task's vector, ``(1, *shape)``, freshly made."""
        ...


class StoredStack:
    """Task vectors computed from stored weights, as far as they are asked for.

    Args:
        shape: The tensor's shape.
        base: The base's tensor.
        experts: Of each task its tensor and whether this is a difference from the base already; ``None`` for a task
            vector that is zero, which is not read.
        device: Where to compute.
        dtype: What to compute in.
        report_broken: Raises an error that says where a value is NaN or infinite, if one is.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        base: Tensor,
        experts: Sequence[tuple[Tensor, bool] | None],
        device: torch.device | str | None,
        dtype: torch.dtype,
        report_broken: Callable[[], None],
    ) -> None:
        self.shape = (len(experts), *shape)
        self._base = base.reshape(-1)
        self._experts = [None if expert is None else (expert[0].reshape(-1), expert[1]) for expert in experts]
        self._device = device
        self._dtype = dtype
        self._report_broken = report_broken

    def sources(self, elements: slice) -> list[Tensor]:  # noqa: D102 (as the protocol says)
        return [self._base[elements], *(expert[0][elements] for expert in self._experts if expert is not None)]

    def tau(self, sources: Sequence[Tensor]) -> Tensor:  # noqa: D102 (as the protocol says)
        return self._subtract(sources, self._experts)

    def task(self, index: int) -> Tensor:  # noqa: D102 (as the protocol says)
        expert = self._experts[index]
        sources = [self._base] if expert is None else [self._base, expert[0]]
        return self._subtract(sources, [expert]).reshape(1, *self.shape[1:])

    def _subtract(self, sources: Sequence[Tensor], experts: Sequence[tuple[Tensor, bool] | None]) -> Tensor:
        base, *stored = sources
        base, given = base.to(self._device, self._dtype), iter(stored)
        tau = torch.empty((len(experts), *base.shape), device=base.device, dtype=base.dtype)
        for row, expert in zip(tau, experts, strict=True):
            if expert is None:
                row.zero_()
            elif expert[1]:
                row.copy_(next(given))
            else:
                torch.sub(next(given).to(base.device, base.dtype), base, out=row)
        # NaN and infinity survive a sum, so that one number tells; overflow of a finite sum is told apart by the rest.
        if not math.isfinite(tau.sum().item()):
            self._report_broken()
        return tau


class HeldStack:
    """Task vectors that are in memory.

    Args:
        tau: ``(T, *shape)``.
        base: The base's tensor.
    """

    def __init__(self, tau: Tensor, base: Tensor) -> None:
        self.shape = tuple(tau.shape)
        self._base = base.reshape(-1)
        self._rows = tau.reshape(len(tau), math.prod(tau.shape[1:]))

    def sources(self, elements: slice) -> list[Tensor]:  # noqa: D102 (as the protocol says)
        return [self._base[elements], self._rows[:, elements]]

    def tau(self, sources: Sequence[Tensor]) -> Tensor:  # noqa: D102 (as the protocol says)
        return sources[1].clone(memory_format=torch.contiguous_format)

    def task(self, index: int) -> Tensor:  # noqa: D102 (as the protocol says)
        return self._rows[index].clone(memory_format=torch.contiguous_format).reshape(1, *self.shape[1:])


def part(stack: Stack, elements: slice) -> Tensor:
    """Return some elements of the flattened task vectors, ``(T, n)``, freshly made.

    Example:
        >>> part(HeldStack(torch.ones(2, 1, 3), base=torch.zeros(1, 3)), slice(2)).shape
        torch.Size([2, 2])
    """
    return stack.tau(stack.sources(elements))


def whole(stack: Stack) -> Tensor:
    """Return all of a stack, ``(T, *shape)``.

    Example:
        >>> whole(HeldStack(torch.ones(2, 1, 3), base=torch.zeros(1, 3))).shape
        torch.Size([2, 1, 3])
    """
    return part(stack, slice(None)).reshape(stack.shape)
