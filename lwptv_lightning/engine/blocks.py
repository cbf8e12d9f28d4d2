"""Stacks are read in blocks of their flattened elements, which stay in the cache or fill an accelerator."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lwptv_lightning.engine.transfer import PinnedTransfer
from lwptv_lightning.task_vectors import Stack

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
