"""A view of task vectors in which each is reweighted."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lwptv_lightning.engine import Stream
from lwptv_lightning.modifiers._base import Reweighting
from lwptv_lightning.task_vectors import ChangedStack, Stack

_COPIES = 8
"""Copies of one task vector, most in float64, while it is decomposed and put together again."""


def reweighted(stream: Stream, reweighting: Reweighting | None) -> Stream:
    """Return task vectors of which each is reweighted when it is first read, as a whole, and held as long as its stack.

    Without a reweighting they are what they were.

    Example:
        >>> import torch
        >>> from lwptv_lightning import TaskVectors
        >>> from lwptv_lightning.modifiers import MonoSoup
        >>> tuned = torch.diag(torch.tensor([4.0, 2.0]))
        >>> stream = Stream.of(TaskVectors.open({"w": torch.zeros(2, 2)}, {"a": {"w": tuned}}))
        >>> reweighted(stream, MonoSoup(version="variance")).stack("w")[0].diag()
        tensor([1.6584, 1.1708])
    """
    if reweighting is None:
        return stream
    treated = {name for name, shape in stream.shapes.items() if reweighting.treats(name, shape)}

    def change(delta: Tensor, base: Tensor) -> Tensor:
        with stream.execution.exact():
            return reweighting.reweighted(delta, base, stream.once)

    def open_stack(name: str) -> Stack:
        stack = stream.open_stack(name)
        return ChangedStack(stack, change, stream.like) if name in treated else stack

    def held_bytes(name: str) -> int:
        if name not in treated:
            return stream.held_bytes(name)
        stacks = 2 * len(stream.tasks) * stream.dtype.itemsize  # LiNeS reads one beside that which is merged
        return stream.held_bytes(name) + stream.numel(name) * (stacks + 8 * _COPIES)

    return replace(stream, open_stack=open_stack, held_bytes=held_bytes)
