"""Loops over one tile of a block, compiled and vectorised, of which kernels are made.

A row is ``(TILE,)`` float32, of which n elements count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

from lwptv_lightning.engine.program import BFLOAT16, BFLOAT16_DIFFERENCE, FLOAT32, NOTHING

TILE = 1024
"""Elements of a row in a tile: T rows of 4 KB lie in the second-level cache."""

f32, u16, u32, i32, i64 = np.float32, np.uint16, np.uint32, np.int32, np.int64
ZERO, ONE = np.float32(0), np.float32(1)
NO_TERM = np.float32(-0.0)
"""What sums begin with, so that those of -0.0 are -0.0, as torch's are."""

_PARTS = ("program.py", "loops.py", "*kernel*.py")
"""Files of what kernels are made of: some are parts of kernels in other files, which numba does not know of."""


def _version(folder: Path) -> str:
    """Return a hash of all that compiled kernels depend on."""
    files = sorted({path for part in _PARTS for path in folder.glob(part)})
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


_VERSION = _version(Path(__file__).parent)


class _Cache(FunctionCache):
    """Keeps a compiled kernel on the disk, for the version of all that may be part of it.

    A file that cannot be read or written costs the time of compiling again and nothing else.
    """

    def _index_key(self, signature: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(signature, codegen), _VERSION)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        with suppress(Exception):  # a broken file may raise whatever a pickle can
            return super().load_overload(signature, target_context)
        return None

    def save_overload(self, signature: Any, data: Any) -> None:
        with suppress(Exception):
            super().save_overload(signature, data)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called; keep it on the disk where there is a folder for that."""
    compiled: Any = njit(nogil=True)(function)
    with suppress(RuntimeError):  # no folder can be written to
        compiled._cache = _Cache(function)
    return compiled


loop = njit(nogil=True)
"""A loop over one tile, which is vectorised; the order of float sums stays as written."""
reduction = njit(nogil=True, fastmath={"reassoc"})
"""A loop whose sum may be taken in any order."""


@intrinsic
def pointer(context: Any, address: Any) -> Any:
    return types.voidptr(types.int64), lambda context, builder, signature, arguments: builder.inttoptr(
        arguments[0], cgutils.voidptr_t
    )


@intrinsic
def fused_multiply_add(context: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once, as torch adds a multiple."""
    kind = types.float32
    return kind(kind, kind, kind), lambda context, builder, signature, arguments: builder.fma(*arguments)


def on_words(name: str) -> Any:
    """Return an operation of the compiler on unsigned words of 32 bits, which numba would do in 64."""

    @intrinsic
    def operation(context: Any, a: Any, b: Any) -> Any:
        word = types.uint32
        return word(word, word), lambda context, builder, signature, arguments: getattr(builder, name)(*arguments)

    return operation


plus, times, xor, shifted = map(on_words, ("add", "mul", "xor", "lshr"))


@loop
def fill(row, value, n):
    for i in range(n):
        row[i] = value


@loop
def widen(values, row, n):
    for i in range(n):
        row[i] = u32(u32(values[i]) << u32(16)).view(f32)


@loop
def copy(values, row, n):
    for i in range(n):
        row[i] = values[i]


@loop
def subtract(row, base, n):
    for i in range(n):
        row[i] = row[i] - base[i]


@reduction
def difference(values, base, row, n):
    """Subtract, and return 0, or NaN where a result is NaN or infinite."""
    broken = ZERO
    for i in range(n):
        x = values[i] - base[i]
        row[i] = x
        broken += x - x
    return broken


@reduction
def unusual(row, n):
    """Return 0, or NaN where a value is NaN or infinite."""
    total = ZERO
    for i in range(n):
        total += row[i] - row[i]
    return total


@loop
def load(address, kind, offset, row, n):
    """Read n values, ``offset`` elements after an address, as float32."""
    if kind in (BFLOAT16, BFLOAT16_DIFFERENCE):
        widen(carray(pointer(address + 2 * offset), (n,), u16), row, n)
    else:
        copy(carray(pointer(address + 4 * offset), (n,), f32), row, n)


@loop
def load_row(address, kind, offset, base, row, n):
    """Make a task vector's values, and return whether one of them is NaN or infinite."""
    if kind == NOTHING:
        fill(row, ZERO, n)
        return False
    if kind == FLOAT32:
        return difference(carray(pointer(address + 4 * offset), (n,), f32), base, row, n) != ZERO
    load(address, kind, offset, row, n)
    if kind == BFLOAT16:
        subtract(row, base, n)
    return unusual(row, n) != ZERO


@loop
def drop_at_random(row, first, mixed_in, limit, density, n):
    """Keep what a draw says and divide it by the density; ``first`` is the first position plus the key's first word."""
    for i in range(n):
        x = plus(first, u32(i))
        x = times(xor(x, shifted(x, u32(17))), u32(0xED5AD4BB))
        x = times(xor(xor(x, shifted(x, u32(11))), mixed_in), u32(0xAC4C1B51))
        x = times(xor(x, shifted(x, u32(15))), u32(0x31848BAB))
        x = xor(x, shifted(x, u32(14)))
        row[i] = row[i] * (ONE if x < limit else ZERO) / density


@loop
def trim(row, threshold, n):
    for i in range(n):
        row[i] = row[i] * (ONE if abs(row[i]) >= threshold else ZERO)


@loop
def keep_between(row, low, low_place, high, high_place, n):
    """Keep what ranks above the low limit and not above the high one; of values at a limit, those from a place on."""
    for i in range(n):
        size = abs(row[i])
        above_low = (size > low) | ((size == low) & (i32(i) >= low_place))
        above_high = (size > high) | ((size == high) & (i32(i) >= high_place))
        row[i] = row[i] * (ONE if above_low ^ above_high else ZERO)


@loop
def keep_above(row, limit, end, n):
    """Keep what ranks above a limit; of values at the limit, those before a place do."""
    for i in range(n):
        size = abs(row[i])
        row[i] = row[i] * (ONE if (size > limit) | ((size == limit) & (i32(i) < end)) else ZERO)


@loop
def inside(place, position):
    """Return a place in the tensor as one in a tile that begins at a position, or next to it."""
    return i32(min(max(place - position, 0), TILE))


@loop
def weigh(row, weight, divides, n):
    if divides:
        for i in range(n):
            row[i] = row[i] / weight
    else:
        for i in range(n):
            row[i] = row[i] * weight


@loop
def add(row, total, n):
    for i in range(n):
        total[i] += row[i]


@loop
def elect(total, tie, signs, directions, n):
    """Turn sums into signs, and into directions, which are - where no sign is elected."""
    for i in range(n):
        x = total[i]
        sign = ONE if x > ZERO else (-ONE if x < ZERO else tie)
        signs[i] = sign
        directions[i] = -ONE if sign == ZERO else sign


@loop
def add_agreeing(row, directions, total, counts, n):
    for i in range(n):
        x = row[i] * directions[i]
        x = x if x >= ZERO else ZERO  # as torch clamps, which leaves -0.0 alone
        total[i] += x
        counts[i] += ONE if x > ZERO else ZERO


@loop
def take_larger(row, directions, largest, n):
    for i in range(n):
        x, before = row[i] * directions[i], largest[i]
        larger = ONE if x > before else ZERO  # multiplied, since a choice between values would not be vectorised
        largest[i] = x * larger + before * (ONE - larger)


@loop
def multiply(total, factors, n):
    for i in range(n):
        total[i] = total[i] * factors[i]


@loop
def average(total, counts, n):
    """Divide sums by how many they are of, where these are any."""
    for i in range(n):
        total[i] = total[i] / (counts[i] if counts[i] > ONE else ONE)


@loop
def count_mattering(row, merged, tall_lambda, counts, n):
    for i in range(n):
        counts[i] += ONE if abs(row[i]) > abs(merged[i] - row[i]) * tall_lambda else ZERO


@loop
def keep_counted(merged, counts, least, n):
    for i in range(n):
        merged[i] = (ONE if counts[i] >= least else ZERO) * merged[i]


@loop
def add_to_base(base, merged, scale, out, n):
    for i in range(n):
        out[i] = fused_multiply_add(merged[i], scale, base[i])


@reduction
def total(row, n):
    total = ZERO
    for i in range(n):
        total += row[i]
    return total
