"""Tensors that are stored in pieces, as sharded runs do: known to be whole, and put together when they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import CheckpointError, TensorHeader

_MOST_DIVIDED = 8
"""Dimensions along which a tensor may be divided."""


@dataclass(frozen=True)
class Piece:
    """A part of a tensor.

    Attributes:
        offsets: Where in the tensor it begins, in each dimension.
        sizes: Its shape.
        read: Returns it; picklable.
        place: What it is called in messages.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    read: Callable[[], Tensor]
    place: str


@dataclass(frozen=True)
class PiecesReader:
    """Reads tensors that are stored in pieces; one of a single piece where it stands."""

    headers: Mapping[str, TensorHeader]
    pieces: Mapping[str, Sequence[Piece]]

    def read(self, name: str) -> Tensor:  # noqa: D102 (as a TensorReader does)
        header, pieces = self.headers[name], self.pieces[name]
        if len(pieces) == 1:
            return _checked(name, pieces[0], header)
        whole = torch.empty(header.shape, dtype=header.dtype)
        for piece in pieces:
            ends = zip(piece.offsets, piece.sizes, strict=True)
            whole[tuple(slice(start, start + size) for start, size in ends)] = _checked(name, piece, header)
        return whole


def _checked(name: str, piece: Piece, header: TensorHeader) -> Tensor:
    tensor = piece.read()
    if TensorHeader.of(tensor) != TensorHeader(piece.sizes, header.dtype):
        raise CheckpointError(
            f"{piece.place}: the piece of {name!r} that stands there has shape {tuple(tensor.shape)} and is "
            f"{tensor.dtype}, expected {piece.sizes} and {header.dtype}."
        )
    return tensor


def is_whole(shape: Sequence[int], pieces: Sequence[tuple[Sequence[int], Sequence[int]]]) -> bool:
    """Whether pieces, each with its offsets and sizes, cover every element of a shape once, and nothing else.

    They do where their signed corners add up to those of the whole: of all corners that fall together, those of pieces
    that meet cancel out. That takes time in proportion to their number, whatever their order.

    Example:
        >>> is_whole((4, 2), [((0, 0), (3, 2)), ((3, 0), (1, 2))]), is_whole((4, 2), [((0, 0), (3, 2))])
        (True, False)
    """
    if any(len(each) != len(shape) for piece in pieces for each in piece):
        return False
    # Along most dimensions nothing is divided.
    divided = [d for d, size in enumerate(shape) if any((o[d], s[d]) != (0, size) for o, s in pieces)]
    if len(divided) > _MOST_DIVIDED:
        return False
    if 0 in shape:
        return True
    corners: Counter[tuple[int, ...]] = Counter()
    every = [*(((o, s), 1) for o, s in pieces), (([0] * len(shape), shape), -1)]
    for (offsets, sizes), sign in every:
        for ends in product((0, 1), repeat=len(divided)):
            corner = tuple(offsets[d] + end * sizes[d] for d, end in zip(divided, ends, strict=True))
            corners[corner] += sign * (-1) ** sum(ends)
    return not any(corners.values())
