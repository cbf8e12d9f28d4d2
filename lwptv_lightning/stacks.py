"""The T task vectors of one tensor, read whole or in blocks of its flattened elements."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lwptv_lightning.transfer import PinnedTransfer

Value = TypeVar("Value")

_CACHE_BYTES = 1 << 21
"""Size of a block of all tasks together on the CPU: with what is computed from it, it stays in the cache, and torch's
threads have enough to share."""
_DEVICE_BYTES = 1 << 28
"""Size of a block on an accelerator, where starting an operation costs more than reading memory again."""
_FREED_BYTES = 1 << 23
"""Several blocks, and less than the large tensors of a result, which had better not stand between blocks."""
_ALIGNMENT = 64
"""Blocks begin at multiples of so many elements, where vector instructions need no unaligned loads."""
_MOST_ELEMENTS = 1 << 22
"""Of one task in a block: so many can be counted, and summed without much rounding, in float32."""


@dataclass(frozen=True)
class Block:
    """A part of one tensor's task vectors.

    Attributes:
        name: The tensor's name.
        start: The position of the first element in the flattened tensor.
        tau: The T task vectors there, ``(T, n)``, for the receiver to write to.
        base: The base's elements there, ``(n,)``, in their own dtype; not to be written to.
    """

    name: str
    start: int
    tau: Tensor
    base: Tensor


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


def block_bytes(device: torch.device | str | None) -> int:
    """Return the size of a block of all tasks together."""
    return _CACHE_BYTES if torch.device(device or "cpu").type == "cpu" else _DEVICE_BYTES


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed blocks, some 16 MB at most, for the blocks that follow.

    glibc gives large blocks back to the system at once, and the system clears each page of the next one, which takes
    longer than the arithmetic. It raises its limits when a larger block is freed; an untouched one costs nothing.
    """
    torch.empty(_FREED_BYTES, dtype=torch.uint8)


def spans(elements: int, tasks: int, dtype: torch.dtype, device: torch.device | str | None) -> Iterator[slice]:
    """Divide a flattened tensor into blocks, always in the same way: sums that are taken by block repeat to the bit.

    Args:
        elements: Of the tensor; an empty one is one block.
        tasks: T.
        dtype: What is computed in.
        device: Where.

    Yields:
        The part of each block.

    Example:
        >>> list(spans(80_000, 8, torch.float32, "cpu"))
        [slice(0, 65536, None), slice(65536, 80000, None)]
    """
    length = min(max(block_bytes(device) // (tasks * dtype.itemsize) // _ALIGNMENT, 1) * _ALIGNMENT, _MOST_ELEMENTS)
    for start in range(0, max(elements, 1), length):
        yield slice(start, min(start + length, elements))


def read_blocks(
    names: Iterable[str],
    open_stack: Callable[[str], Stack],
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Iterator[Block]:
    """Read some tensors block by block, in order; on a CUDA device the next one is copied there meanwhile.

    Args:
        names: The tensors' names.
        open_stack: Returns a tensor's stack.
        dtype: What is computed in.
        device: Where.
    """
    keep_freed_memory()
    jobs = _divided(names, open_stack, dtype, device)
    if torch.device(device or "cpu").type != "cuda":
        for name, stack, span in jobs:
            sources = stack.sources(span)
            yield Block(name, span.start, stack.tau(sources), sources[0])
        return
    transfer = PinnedTransfer(torch.device(device or "cuda"))
    sent = ((job, transfer.send(job[1].sources(job[2]))) for job in jobs)
    for (name, stack, span), arrive in _one_ahead(sent):
        sources = arrive()
        yield Block(name, span.start, stack.tau(sources), sources[0])


def _divided(
    names: Iterable[str], open_stack: Callable[[str], Stack], dtype: torch.dtype, device: torch.device | str | None
) -> Iterator[tuple[str, Stack, slice]]:
    for name in names:
        stack = open_stack(name)
        tasks, *shape = stack.shape
        for span in spans(math.prod(shape), tasks, dtype, device):
            yield name, stack, span


def _one_ahead(items: Iterable[Value]) -> Iterator[Value]:
    """Yield items, each after the next one has been taken."""
    waiting: deque[Value] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def sum_by_tensor(found: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Add up the values of each tensor's blocks, in their order, and return the sums on the CPU.

    Example:
        >>> sum_by_tensor([("w", torch.ones(1)), ("w", torch.ones(1)), ("b", torch.ones(1))])
        {'w': tensor([2.]), 'b': tensor([1.])}
    """
    sums: dict[str, Tensor] = {}
    for name, value in found:
        sums[name] = sums[name] + value if name in sums else value
    return {name: total.cpu() for name, total in sums.items()}
