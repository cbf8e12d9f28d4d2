"""Random draws that depend on an element's position and on names alone."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ALL_BITS = (1 << 64) - 1
_MANTISSA = (1 << 53) - 1


def random_keep(
    count: int, probability: float | Tensor, seed: int, tasks: Sequence[str], name: str, start: int = 0
) -> Tensor:
    """Draw which elements of a tensor's task vectors to keep, each with a given probability.

    The draw of an element depends on the seed, the names of its task and tensor, and its position alone: not on the
    order of tensors and tasks, the blocks they are read in, the number of processes, or the device.

    Args:
        count: The number of elements n.
        probability: To keep an element, in [0, 1]; a number, or one below 1 for each element, ``(T, n)``.
        seed: Seeds the draw.
        tasks: The T task names.
        name: The tensor's name.
        start: The position of the first element in the flattened tensor.

    Returns:
        1 for each element to keep and 0 for the others, ``(T, n)`` float32, on the CPU.

    Example:
        >>> draw = random_keep(4, 0.5, 0, ["a"], "w")
        >>> bool((draw[:, 2:] == random_keep(2, 0.5, 0, ["a"], "w", start=2)).all())
        True
    """
    if not isinstance(probability, Tensor) and probability >= 1:
        return torch.ones(len(tasks), count)
    # One bit decides a half, which is the usual density.
    bits = 1 if not isinstance(probability, Tensor) and probability == 0.5 else 8
    limits = np.asarray(probability, dtype=np.float64) * 2.0**bits
    whole, rest = np.floor(limits).astype(np.uint8), limits % 1
    keys = [(seed, task, name) for task in tasks]
    generator = np.random.PCG64DXSM(0)  # its own: one that calls shared would mix the draws of threads
    drawn = np.stack([_draws_of(generator, bits, count, start, key) for key in keys])
    kept = drawn < whole
    if rest.any():
        # Where the bits are the limit's own, 53 more decide.
        row, position = np.divmod(np.flatnonzero(drawn == whole), max(count, 1))
        salts = np.array([_first_state((*key, "rest"))["state"]["state"] & _ALL_BITS for key in keys], dtype=np.uint64)
        further = _scrambled(salts[row] + (position + start).astype(np.uint64)) >> np.uint64(11)
        kept[row, position] = further * 2.0**-53 < (rest[row, position] if rest.ndim else rest)
    return torch.from_numpy(kept.view(np.uint8).astype(np.float32))


def random_uniform(seed: int, *names: str) -> float:
    """Draw a number in [0, 1) that depends on a seed and on names alone.

    Example:
        >>> random_uniform(0, "a", "fc") == random_uniform(0, "a", "fc") != random_uniform(0, "a", "head")
        True
    """
    return (_digest((seed, *names, "uniform")) & _MANTISSA) * 2.0**-53


def _scrambled(numbers: Any) -> Any:
    """Return the finaliser of SplitMix64: numbers of 64 bits that look independent for neighbouring arguments."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
    return numbers ^ (numbers >> np.uint64(31))


def _draws_of(generator: Any, bits: int, count: int, start: int, key: tuple[int | str, ...]) -> Any:
    """Return random numbers of 1 or 8 bits for the elements from ``start`` on, cut out of numbers of 64 bits."""
    first, skipped = divmod(start, 64 // bits)
    generator.state = _first_state(key)
    generator.advance(first)
    numbers = generator.random_raw(-(-(skipped + count) * bits // 64)).view(np.uint8)
    drawn = np.unpackbits(numbers, bitorder="little") if bits == 1 else numbers
    return drawn[skipped : skipped + count]


@lru_cache(maxsize=1 << 14)
def _first_state(key: tuple[int | str, ...]) -> Any:
    return np.random.PCG64DXSM(_digest(key)).state


def _digest(key: tuple[int | str, ...]) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(map(str, key)).encode()).digest(), "little")
