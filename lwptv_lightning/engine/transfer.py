"""Copies of tensors to a CUDA device that run while it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Arrival: TypeAlias = Callable[[], list[Tensor]]
"""Returns the copies. What is computed from them waits until they are complete; the caller does not wait."""

_ALIGNMENT = 16
"""Bytes; each tensor begins at a multiple of it, whatever the dtype of the one before."""


class PinnedTransfer:
    """Sends tensors through two pinned buffers, on a stream of its own.

    While one buffer is on its way, the other is filled, and the current stream computes from what has arrived. They
    are sent to where ``like`` is.
    """

    def __init__(self, like: Tensor) -> None:
        self._device = like.device
        self._stream = torch.cuda.Stream(like.device)  # type: ignore[no-untyped-call]
        self._buffers = [torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8)]
        self._sent: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def send(self, tensors: Sequence[Tensor]) -> Arrival:
        """Begin to copy some tensors; those that are on a device are handed on as they are."""
        turn, self._turn = self._turn, 1 - self._turn
        if (last := self._sent[turn]) is not None:
            last.synchronize()  # the buffer is free once its last content has left it
        rooms = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors]
        if len(self._buffers[turn]) < sum(rooms):
            self._buffers[turn] = _pinned(sum(rooms))
        copies, begin = [], 0
        for tensor, room in zip(tensors, rooms, strict=True):
            if tensor.is_cuda:
                copies.append(tensor)
                continue
            pinned = self._buffers[turn][begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            pinned.copy_(tensor)
            with torch.cuda.stream(self._stream):
                copies.append(pinned.to(self._device, non_blocking=True))
            begin += room
        sent = self._sent[turn] = torch.cuda.Event()  # type: ignore[no-untyped-call]
        sent.record(self._stream)

        def arrive() -> list[Tensor]:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(sent)
            for copy in copies:
                copy.record_stream(computing)  # so that its memory is not given to another copy too early
            return copies

        return arrive


def _pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
