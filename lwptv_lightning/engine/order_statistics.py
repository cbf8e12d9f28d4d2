"""The k-th smallest of all values of a model, exact to the bit, in a pass or two over blocks and little memory.

The bits of a float, read as an integer, order like the floats once those of negative ones are turned round: these are
the keys here. The search keeps a bracket of keys for each row. A pass counts the values below the bracket and, inside,
how many fall into each of many bins of neighbouring keys. The bin that holds the k-th value is the next bracket, until
that is a single key. The first bracket is estimated from a sample. One that misses costs another pass, and no accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import le, lt
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from lwptv_lightning.engine.blocks import Block
from lwptv_lightning.engine.fused import gather_fused
from lwptv_lightning.engine.program import Program, magnitudes_program
from lwptv_lightning.engine.stream import Stream
from lwptv_lightning.functional import compare, count_true, sample_margins, select
from lwptv_lightning.task_vectors import Stack

Transform: TypeAlias = Callable[[Block], Tensor]
"""Maps a block to other values, ``(R, n)``, on which a search over the whole model works instead."""

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
_MOST_BINS = 1 << 19
_SAMPLE = 1 << 19
"""How many values of each row the first bracket is estimated from; a model with few more does without."""


def kth_smallest_magnitude(stream: Stream, k: int, transform: Transform | None = None) -> Tensor:
    """Return each task's k-th smallest ``|tau|`` over the whole model, ``(T,)``; see `order_statistics`."""

    def magnitudes(block: Block) -> Tensor:
        return (block.tau if transform is None else transform(block)).abs()

    return order_statistics(stream, [k], magnitudes)[0]


def order_statistics(stream: Stream, orders: Sequence[int], transform: Transform) -> Tensor:
    """Return the k-th smallest value of each row over the whole model, for several k.

    Args:
        stream: What to read.
        orders: The K ranks k, counted from 1.
        transform: Gives the values, R rows, the same number for every block.

    Returns:
        ``(K, R)``, on the CPU, in the dtype of the stacks.

    Raises:
        ValueError: A rank is not in 1 ... number of elements.
    """
    total = stream.elements
    for k in orders:
        if not 1 <= k <= total:
            raise ValueError(f"k must lie in 1 ... {total}, not {k}.")
    brackets = _first_brackets(stream, orders, total, transform)
    while not all(bracket.is_found for row in brackets for bracket in row):
        below, bins = _count(stream, transform, brackets)
        if len(brackets[0]) == 1:  # what is known of all rows before one has been seen
            brackets = [row * bins.shape[1] for row in brackets]
        brackets = [
            [
                # By numpy: torch's threads would hang in a process that was forked after they had been used.
                bracket.narrowed(
                    k - int(below[i, row]),
                    torch.from_numpy(bins[i, row].numpy().cumsum(dtype=np.int64)),
                    stream.dtype,
                )
                for row, bracket in enumerate(brackets[i])
            ]
            for i, k in enumerate(orders)
        ]
    return torch.stack([_floats([bracket.low for bracket in row], stream.dtype) for row in brackets])


@dataclass(frozen=True)
class _Bracket:
    """Keys between which the wanted value lies, both included; unless it is a guess, it does for certain."""

    low: int
    high: int
    guessed: bool = False

    @property
    def is_found(self) -> bool:
        """Whether it is the wanted value's key."""
        return self.low == self.high and not self.guessed

    @cached_property
    def shift(self) -> int:
        """How many low bits of a key tell nothing of its bin."""
        shift = 0
        while (self.high >> shift) - (self.low >> shift) >= _MOST_BINS:
            shift += 1
        return shift

    @property
    def bins(self) -> int:
        """The number of bins."""
        return (self.high >> self.shift) - (self.low >> self.shift) + 1

    def narrowed(self, k: int, reached: Tensor, dtype: torch.dtype) -> _Bracket:
        """Return the bracket of the k-th value, counted from the first one in here; it may lie outside.

        ``reached`` is how many values lie in the first bins, ``(bins,)``.
        """
        everything = _everything(dtype)
        if k < 1:
            return _Bracket(everything.low, self.low - 1)
        if k > reached[-1]:
            return _Bracket(self.high + 1, everything.high)
        start = ((self.low >> self.shift) + int(torch.searchsorted(reached, k))) << self.shift
        return _Bracket(max(self.low, start), min(self.high, start + (1 << self.shift) - 1))


def _everything(dtype: torch.dtype) -> _Bracket:
    infinity = int(_keys(torch.tensor(math.inf, dtype=dtype)))
    return _Bracket(-infinity, infinity)


def _first_brackets(stream: Stream, orders: Sequence[int], total: int, transform: Transform) -> list[list[_Bracket]]:
    """Return a bracket for each rank and row; one for all rows where the model is too small to take a sample."""
    if total < 4 * _SAMPLE:
        return [[_everything(stream.dtype)] for _ in orders]
    stride = total // _SAMPLE | 1  # odd, since the lengths of rows rarely are
    drawn = stream.sample(lambda block: transform(block).cpu(), stride)
    sample = torch.cat([part for found in stream.exchange(drawn) for part in found], dim=1)
    size, everything = sample.shape[1], _everything(stream.dtype)
    margins = [sample_margins(k, total, size) for k in orders]
    wanted = sorted({rank - 1 for pair in margins for rank in pair if 1 <= rank <= size})
    ordered = torch.from_numpy(np.partition(sample.numpy(), wanted, axis=1)) if wanted else sample
    brackets = []
    for first, last in margins:
        lows = _keys(ordered[:, first - 1]).tolist() if first >= 1 else [everything.low] * len(sample)
        highs = _keys(ordered[:, last - 1]).tolist() if last <= size else [everything.high] * len(sample)
        brackets.append([_Bracket(low, high, guessed=True) for low, high in zip(lows, highs, strict=True)])
    return brackets


def _count(stream: Stream, transform: Transform, brackets: list[list[_Bracket]]) -> tuple[Tensor, Tensor]:
    """Return how many values lie below each bracket, ``(K, R)``, and in each of its bins, ``(K, R, bins)``."""
    bins = max(bracket.bins for row in brackets for bracket in row)
    tables = [_Table.of(row, bins, stream.dtype, stream.execution.device) for row in brackets]

    def look_up(block: Block) -> list[_Found]:
        values = transform(block)
        return [table.look_up(values) for table in tables]

    def fused(name: str) -> Callable[[Stack, slice], list[_Found]] | None:
        program = stream.program(magnitudes_program, transform, name) if len(tables) == 1 else None
        return None if program is None else lambda stack, elements: [tables[0].gather(program, stack, elements)]

    below = counts = torch.zeros(0, dtype=torch.int64)
    dtype = torch.int32 if stream.elements <= torch.iinfo(torch.int32).max else torch.int64
    for _, found in stream.map(look_up, fused=fused):
        if not len(below):
            below = torch.zeros(len(found), len(found[0][0]), dtype=torch.int64, device=stream.execution.device)
            counts = torch.zeros(len(found), below.shape[1] * bins, dtype=dtype, device=stream.execution.device)
        for rank, (smaller, lowest, hits) in enumerate(found):
            below[rank] += smaller
            counts[rank, ::bins] += lowest.to(dtype)
            counts[rank].scatter_add_(0, hits, torch.ones_like(hits, dtype=dtype))
    # A process without a tensor of its own has counted nothing.
    parts = [part for part in stream.exchange((below.cpu(), counts.cpu())) if len(part[0])]
    below, counts = (sum(column[1:], start=column[0]) for column in zip(*parts, strict=True))
    return below, counts.reshape(*below.shape, bins)


_Found: TypeAlias = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _Table:
    """The brackets of the rows for one rank, or one bracket for all rows; tensors of shape ``(R,)``."""

    low: Tensor
    high: Tensor
    shift: Tensor
    first: Tensor
    bins: int

    @classmethod
    def of(cls, row: list[_Bracket], bins: int, dtype: torch.dtype, device: torch.device | str | None) -> _Table:
        low, high = (_floats(keys, dtype).to(device) for keys in zip(*((b.low, b.high) for b in row), strict=True))
        shift, first = zip(*((bracket.shift, bracket.low >> bracket.shift) for bracket in row), strict=True)
        return cls(low, high, torch.tensor(shift, device=device), torch.tensor(first, device=device), bins)

    def look_up(self, values: Tensor) -> _Found:
        """Count the values below the bracket and those at its low end, and number the bins of the others inside.

        The low end belongs to the first bin. It is told apart because pruning and dropping make a great many zeros.

        Returns:
            ``(R,)``, ``(R,)``, and a number for each value inside, those of all rows counted through.
        """
        limits = ((lt, self.low), (le, self.low), (le, self.high))
        smaller, lowest, through = (compare(operator, values, limit[:, None]) for operator, limit in limits)
        inside = through ^ lowest
        below = count_true(smaller)
        return below, count_true(lowest) - below, self._bins(select(values, inside), count_true(inside))

    def gather(self, program: Program, stack: Stack, elements: slice) -> _Found:
        """Do the same for magnitudes of a stack, by a compiled kernel."""
        low, high = (limit.expand(program.tasks).contiguous().numpy() for limit in (self.low, self.high))
        counts, inside = gather_fused(program, stack, elements, low, high)
        below, lowest = torch.from_numpy(counts).unbind(1)
        values = torch.from_numpy(np.concatenate(inside))
        return below, lowest, self._bins(values, torch.tensor([len(row) for row in inside]))

    def _bins(self, inside: Tensor, lengths: Tensor) -> Tensor:
        """Number the bins of values inside the brackets, which lie row after row, so many of each."""
        rows = torch.arange(len(lengths), device=inside.device).repeat_interleave(lengths.to(inside.device))
        shift, first = (given.expand(len(lengths))[rows] for given in (self.shift, self.first))
        return rows * self.bins + (_keys(inside) >> shift) - first


def _keys(values: Tensor) -> Tensor:
    """Map floats to integers of the same order: from sign and magnitude to two's complement."""
    integers = values.view(_INTEGERS[values.dtype])
    return torch.where(integers < 0, -(integers & torch.iinfo(integers.dtype).max), integers).long()


def _floats(keys: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Map keys back to floats."""
    integers = torch.tensor(keys, dtype=_INTEGERS[dtype])
    return torch.where(integers < 0, -integers | torch.iinfo(integers.dtype).min, integers).view(dtype)
