"""Random draws that depend on an element's position and on names alone."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from lwptv_lightning.functional.sums import sum_dtype

_LOW = (1 << 32) - 1
_MANTISSA = (1 << 53) - 1
_CPU_CHUNK = 1 << 16
"""Elements that are drawn together: what that takes stays in the cache."""
_DEVICE_CHUNK = 1 << 22


def random_keep(
    count: int,
    probability: float | Tensor,
    seed: int,
    tasks: Sequence[str],
    name: str,
    start: int = 0,
    like: Tensor | None = None,
) -> Tensor:
    """Draw which elements of a tensor's task vectors to keep, each with a given probability.

    The draw of an element depends on the seed, the names of its task and tensor, and its position alone: not on the
    order of tensors and tasks, the blocks they are read in, the number of processes, or the device.

    The generator counts: an element's number is a hash of its position, and the element is kept where its number is
    below `draw_limit`. One number of 32 bits decides, so that probabilities are multiples of ``2**-32``. With the words
    ``k0`` and ``k1`` of `draw_key`, the number at position ``p`` is ``x`` after these steps in unsigned 32 bits, which
    wrap::

        x = p + k0
        x = (x ^ (x >> 17)) * 0xED5AD4BB
        x = (x ^ (x >> 11) ^ k1) * 0xAC4C1B51
        x = (x ^ (x >> 15)) * 0x31848BAB
        x = x ^ (x >> 14)

    Shifts and factors are those of ``triple32`` of Wellons' hash-prospector. Each step can be undone: over ``2**32``
    positions each number comes once.

    Args:
        count: The number of elements n.
        probability: To keep an element, in [0, 1]; a number, or one for each element, ``(T, n)``, on the device.
        seed: Seeds the draw.
        tasks: The T task names.
        name: The tensor's name.
        start: The position of the first element in the flattened tensor.
        like: A tensor on the device to draw on; without one, that is the CPU.

    Returns:
        1 for each element to keep and 0 for the others, ``(T, n)``, on the device; float64 beside a tensor of that
            dtype, else float32.

    Example:
        >>> draw = random_keep(4, 0.5, 0, ["a"], "w")
        >>> bool((draw[:, 2:] == random_keep(2, 0.5, 0, ["a"], "w", start=2)).all())
        True
    """
    device = torch.device("cpu") if like is None else like.device
    dtype = torch.float32 if like is None else sum_dtype(like.dtype)
    kept = torch.empty(len(tasks), count, dtype=dtype, device=device)
    if not isinstance(probability, Tensor) and probability >= 1:
        return kept.fill_(1)
    plain = _in_numpy(device)
    rows: Any = kept.numpy() if plain else kept
    for part in _parts(start, count, _CPU_CHUNK if plain else _DEVICE_CHUNK):
        position, length = start + part.start, part.stop - part.start
        for row, task in enumerate(tasks):
            numbers = np.arange(length, dtype=np.uint32) if plain else torch.arange(length, device=device)
            added, mixed_in = draw_key(seed, task, name, position)
            _scramble_(numbers, (position + added) & _LOW, mixed_in)
            limit: Any = draw_limit(probability[row, part] if isinstance(probability, Tensor) else probability)
            rows[row, part] = numbers < (limit.numpy() if plain and isinstance(limit, Tensor) else limit)
    return kept


def draw_key(seed: int, task: str, name: str, position: int = 0) -> tuple[int, int]:
    """Return the words ``k0`` and ``k1`` of 32 bits that key the draws of `random_keep`.

    They are the first eight bytes, little end first, of the SHA-256 of seed, task, tensor and ``position // 2**32`` as
    texts in UTF-8 with a zero byte between. So one key holds for ``2**32`` positions.

    Example:
        >>> draw_key(0, "a", "w") == draw_key(0, "a", "w", 2**32 - 1) != draw_key(0, "a", "w", 2**32)
        True
    """
    return _key(seed, task, name, position >> 32)


@overload
def draw_limit(probability: float) -> int: ...
@overload
def draw_limit(probability: Tensor) -> Tensor: ...
def draw_limit(probability: float | Tensor) -> int | Tensor:
    """Return what an element's number must be below for `random_keep` to keep it: ``probability * 2**32``, rounded up.

    Example:
        >>> draw_limit(0.5), draw_limit(torch.tensor([0.25, 0.5]))
        (2147483648, tensor([1073741824, 2147483648]))
    """
    if isinstance(probability, Tensor):
        # A power of two changes the exponent alone, so that the product is exact; float16 has no such exponents.
        wide = probability.to(torch.promote_types(probability.dtype, torch.float32))
        return (wide * 2.0**32).ceil_().long()
    return math.ceil(probability * 2.0**32)


def random_uniform(seed: int, *names: str) -> float:
    """Draw a number in [0, 1) that depends on a seed and on names alone.

    Example:
        >>> random_uniform(0, "a", "fc") == random_uniform(0, "a", "fc") != random_uniform(0, "a", "head")
        True
    """
    return (_digest(seed, *names, "uniform") & _MANTISSA) * 2.0**-53


def _in_numpy(device: torch.device) -> bool:
    """Whether NumPy draws, whose integers of 32 bits are without sign and fast on the CPU; torch draws in 64 bits."""
    return device.type == "cpu"


def _parts(start: int, count: int, most: int) -> Iterator[slice]:
    """Divide the elements so that each part has one key."""
    first = 0
    while first < count:
        end_of_key = (start + first | _LOW) + 1 - start
        last = min(first + most, end_of_key, count)
        yield slice(first, last)
        first = last


def _scramble_(numbers: Any, added: int, mixed_in: int) -> None:
    """Hash numbers of 32 bits in place: an array of uint32, or a tensor of int64."""
    numbers += added
    _wrap_(numbers)
    numbers ^= numbers >> 17
    numbers *= 0xED5AD4BB
    _wrap_(numbers)
    numbers ^= numbers >> 11
    numbers ^= mixed_in
    numbers *= 0xAC4C1B51
    _wrap_(numbers)
    numbers ^= numbers >> 15
    numbers *= 0x31848BAB
    _wrap_(numbers)
    numbers ^= numbers >> 14


def _wrap_(numbers: Any) -> None:
    # An array of uint32 has wrapped already.
    if isinstance(numbers, Tensor):
        numbers &= _LOW


@lru_cache(maxsize=1 << 14)
def _key(seed: int, task: str, name: str, high: int) -> tuple[int, int]:
    digest = _digest(seed, task, name, high)
    return digest & _LOW, digest >> 32 & _LOW


def _digest(*key: int | str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(map(str, key)).encode()).digest(), "little")
