"""Files mapped into memory, so that only what is read of them is loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import CheckpointError
from lwptv_lightning.files import InputFile

MOST_DIMENSIONS = 64
"""Dimensions of a tensor that torch computes with."""


def map_bytes(file: InputFile) -> Tensor:
    """Return a file's bytes, ``(n,)`` uint8, which stay mapped while the tensor lives and must not be written to.

    A mapped file is not open, so that more can be mapped than a system lets be open.

    Raises:
        CheckpointError: It is not the file any more that was looked at first.
    """
    file.require_unchanged()
    if not file.size:
        return torch.empty(0, dtype=torch.uint8)
    try:
        storage: Any = torch.UntypedStorage.from_file(str(file.path), shared=False, nbytes=file.size)
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{file.path}: cannot be mapped into memory ({error}).") from error
    file.require_unchanged()
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def numbers_at(data: Tensor, place: slice, kind: torch.dtype) -> Tensor:
    """Return some of a file's bytes as the numbers that they are, ``(n,)``; they are copied where they stand askew."""
    values = data[place]
    return (values.clone() if values.storage_offset() % kind.itemsize else values).view(kind)
