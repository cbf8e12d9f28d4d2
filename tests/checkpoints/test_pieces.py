import random

import pytest
import torch

from lwptv_lightning import CheckpointError
from lwptv_lightning.checkpoints.checkpoint import TensorHeader
from lwptv_lightning.checkpoints.pieces import Piece, PiecesReader, is_whole


def cut(offsets, sizes, rng, depth):
    """Cut a box into boxes at random."""
    wide = [d for d, size in enumerate(sizes) if size > 1]
    if not depth or not wide:
        return [(tuple(offsets), tuple(sizes))]
    d = rng.choice(wide)
    at = rng.randrange(1, sizes[d])
    left = [at if i == d else size for i, size in enumerate(sizes)]
    right = [size - at if i == d else size for i, size in enumerate(sizes)]
    moved = [start + at if i == d else start for i, start in enumerate(offsets)]
    return cut(offsets, left, rng, depth - 1) + cut(moved, right, rng, depth - 1)


def covers_once(shape, pieces):
    """The slow way."""
    counts = torch.zeros(shape, dtype=torch.int64)
    for offsets, sizes in pieces:
        if any(start + size > length for start, size, length in zip(offsets, sizes, shape, strict=True)):
            return False
        counts[tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))] += 1
    return bool((counts == 1).all())


def test_a_whole_is_told_from_what_is_none():
    rng = random.Random(0)
    told = {True: 0, False: 0}
    for _ in range(300):
        shape = tuple(rng.randrange(1, 5) for _ in range(rng.randrange(1, 4)))
        pieces = cut([0] * len(shape), shape, rng, rng.randrange(4))
        rng.shuffle(pieces)
        if rng.random() < 0.6:  # spoil one
            at = rng.randrange(len(pieces))
            offsets, sizes = ([*each] for each in pieces[at])
            d = rng.randrange(len(shape))
            (offsets if rng.random() < 0.5 else sizes)[d] += 1
            pieces[at] = (tuple(offsets), tuple(sizes))
        if rng.random() < 0.2:
            pieces.append(rng.choice(pieces))
        expected = covers_once(shape, pieces)
        assert is_whole(shape, pieces) == expected, (shape, pieces)
        told[expected] += 1
    assert min(told.values()) > 50


@pytest.mark.parametrize(
    ("shape", "pieces", "whole"),
    [
        ((), [((), ())], True),
        ((), [], False),
        ((0, 3), [], True),
        ((2,), [], False),
        ((2,), [((0, 0), (2, 1))], False),
        ((2,), [((0,), (1,))] * 2, False),
        ((2, 2), [((0, 0), (1, 2)), ((1, 0), (1, 1)), ((0, 1), (1, 1))], False),
        ((1 << 50,), [((0,), (1 << 49,)), ((1 << 49,), (1 << 49,))], True),
        ((2,) * 60, [((0,) * 60, (1,) * 60)], False),
    ],
)
def test_edges(shape, pieces, whole):
    assert is_whole(shape, pieces) == whole


def test_a_piece_must_be_what_was_said_of_it():
    header = TensorHeader((2, 2), torch.float32)
    rows = [Piece((i, 0), (1, 2), torch.arange(2.0)[None].clone, f"file {i}") for i in range(2)]
    assert PiecesReader({"w": header}, {"w": rows}).read("w").tolist() == [[0, 1], [0, 1]]
    for wrong in (torch.ones(2), torch.ones(1, 2).double()):
        rows[1] = Piece((1, 0), (1, 2), wrong.clone, "file 1")
        with pytest.raises(CheckpointError, match="file 1: the piece of 'w' that stands there has shape"):
            PiecesReader({"w": header}, {"w": rows}).read("w")
