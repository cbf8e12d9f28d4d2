"""Merged task vectors that stay in memory, for merges that differ in their coefficients alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from lwptv_lightning.checkpoints import TensorHeader
from lwptv_lightning.merging.combine import Piece


@dataclass(frozen=True)
class Held:
    """The merged task vector of one tensor.

    Attributes:
        merged: Its elements, flattened, in the dtype and on the device in which they were made; ``None`` where every
            task is pruned.
        parts: Which elements each piece had, from the first to the last.
    """

    merged: Tensor | None
    parts: tuple[slice, ...]

    def pieces(self, name: str, base: Tensor) -> Iterator[Piece]:
        """Give the pieces as they were made; ``base`` is the base's tensor, flattened, in its own dtype."""
        for part in self.parts:
            yield Piece(name, part, base[part], None if self.merged is None else self.merged[part])


def hold(pieces: Iterable[Piece], headers: Mapping[str, TensorHeader]) -> dict[str, Held]:
    """Keep the merged task vectors of pieces, those of a tensor one after the other, by the tensors' names.

    Args:
        pieces: What is made.
        headers: Tensor name to header.

    Example:
        >>> import torch
        >>> made = [Piece("w", slice(0, 2), torch.zeros(2), torch.ones(2)), Piece("w", slice(2, 3), *torch.ones(2, 1))]
        >>> hold(made, {"w": TensorHeader((3,), torch.float32)})["w"].merged
        tensor([1., 1., 1.])
    """
    return {name: _joined(own, headers[name].numel) for name, own in groupby(pieces, key=lambda piece: piece.name)}


def _joined(pieces: Iterable[Piece], numel: int) -> Held:
    merged, parts = None, []
    for piece in pieces:
        parts.append(piece.elements)
        if piece.merged is None:
            continue
        if merged is None:  # not the first piece itself, which may be a view of the memory of all tasks
            merged = piece.merged.new_empty(numel)
        merged[piece.elements] = piece.merged
    return Held(merged, tuple(parts))
