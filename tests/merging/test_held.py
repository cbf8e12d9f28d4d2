"""Merged task vectors in memory give the pieces that they were made in."""

import torch

from lwptv_lightning.checkpoints import TensorHeader
from lwptv_lightning.merging.combine import Piece
from lwptv_lightning.merging.held import hold


def test_what_is_held_gives_the_same_pieces_of_another_read_of_the_base():
    base, stack = torch.arange(5.0), torch.randn(8, 5)
    made = [
        Piece("v", slice(0, 5), base, None),
        Piece("w", slice(0, 3), base[:3], stack[0, :3]),
        Piece("w", slice(3, 5), base[3:], stack[0, 3:]),
        Piece("whole", slice(0, 5), base, stack[0]),
    ]
    held = hold(iter(made), {name: TensorHeader((5,), torch.float32) for name in ("v", "w", "whole")})
    read = base.half()
    found = [piece for name, own in held.items() for piece in own.pieces(name, read)]
    assert [(piece.name, piece.elements) for piece in found] == [(piece.name, piece.elements) for piece in made]
    for piece, expected in zip(found, made, strict=True):
        assert torch.equal(piece.base, read[piece.elements])
        assert (piece.merged is None) == (expected.merged is None)
        assert piece.merged is None or torch.equal(piece.merged, expected.merged)


def test_no_more_is_held_than_the_merged_task_vector():
    stack = torch.randn(8, 5)
    (held,) = hold(
        [Piece("w", slice(0, 5), torch.zeros(5), stack[0])], {"w": TensorHeader((5,), torch.float32)}
    ).values()
    assert held.merged.untyped_storage().nbytes() == 5 * 4
