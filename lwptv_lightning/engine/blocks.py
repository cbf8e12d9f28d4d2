"""Stacks are read in blocks of their flattened elements, which stay in the cache or fill an accelerator."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lwptv_lightning.engine.transfer import PinnedTransfer
from lwptv_lightning.task_vectors import Stack

Value = TypeVar("Value")

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


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed blocks, some 16 MB at most, for the blocks that follow.

    glibc gives large blocks back to the system at once, and the system clears each page of the next one, which takes
    longer than the arithmetic. It raises its limits when a larger block is freed; an untouched one costs nothing.
    """
    torch.empty(_FREED_BYTES, dtype=torch.uint8)


def spans(elements: int, element_bytes: int, block_bytes: int) -> Iterator[slice]:
    """Divide a flattened tensor into blocks, always in the same way: sums that are taken by block repeat to the bit.

    Args:
        elements: Of the tensor; an empty one is one block.
        element_bytes: What one element takes, of all tasks together.
        block_bytes: What a block may take.

    Yields:
        The part of each block.

    Example:
        >>> list(spans(80_000, element_bytes=32, block_bytes=1 << 21))
        [slice(0, 65536, None), slice(65536, 80000, None)]
    """
    length = max(block_bytes // element_bytes, 1)
    length = min(length // _ALIGNMENT * _ALIGNMENT or length, _MOST_ELEMENTS)
    for start in range(0, max(elements, 1), length):
        yield slice(start, min(start + length, elements))


def read_blocks(stacks: Iterable[tuple[str, Stack]], like: Tensor, block_bytes: int) -> Iterator[Block]:
    """Read named stacks block by block, in order; on a CUDA device the next one is copied there meanwhile.

    Args:
        stacks: The tensors' names and stacks.
        like: A tensor of the dtype and on the device to compute in.
        block_bytes: The size of a block of all tasks together.
    """
    keep_freed_memory()
    jobs = _divided(stacks, like.element_size(), block_bytes)
    if like.device.type != "cuda":
        for name, stack, span in jobs:
            base, *others = stack.sources(span)
            yield Block(name, span.start, stack.tau(base.to(like), others), base)
        return
    transfer = PinnedTransfer(like)
    sent = ((job, transfer.send(job[1].sources(job[2]))) for job in jobs)
    for (name, stack, span), arrive in _one_ahead(sent):
        base, *others = arrive()
        yield Block(name, span.start, stack.tau(base.to(like), others), base)


def _divided(stacks: Iterable[tuple[str, Stack]], size: int, block_bytes: int) -> Iterator[tuple[str, Stack, slice]]:
    """Divide stacks into blocks; an element of one task vector has some size, in bytes."""
    for name, stack in stacks:
        tasks, *shape = stack.shape
        for span in spans(math.prod(shape), tasks * size, block_bytes):
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
