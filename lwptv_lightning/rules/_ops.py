"""Tensor operations that several merging rules share.

Shapes: T tasks; ``tau`` is a stack of task vectors ``(T, *shape)``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from lwptv_lightning.pruned_task_vectors import PrunedTaskVectors

_DIGIT_BITS = 16
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}

Transform: TypeAlias = Callable[[Tensor, str], Tensor]
"""Maps a stack and its tensor's name to other values, on which a search over the whole model works instead."""


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Shape T numbers so that they act on the rows of a stack: ``(T,) -> (T, 1, ..., 1)``.

    Example:
        >>> per_row(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4)).shape
        torch.Size([2, 1, 1])
    """
    return values.to(like.device, like.dtype).reshape(-1, *[1] * (like.dim() - 1))


def as_rows(tau: Tensor) -> Tensor:
    """Flatten all but the first dimension: ``(T, *shape) -> (T, n)``, also where shape is ``()`` or n is 0.

    Example:
        >>> as_rows(torch.zeros(2, 3, 4)).shape, as_rows(torch.zeros(2)).shape
        (torch.Size([2, 12]), torch.Size([2, 1]))
    """
    return tau.reshape(len(tau), math.prod(tau.shape[1:]))


def smallest_kept(elements: int, density: float) -> int:
    """Return the rank, from the smallest, of the least element that a trim keeps.

    A trim to a fraction ``density`` of d elements keeps all that are at least as large as the
    ``d - int(d * density)``-th smallest, so ``int(d * density) + 1`` of them and whatever ties with the last, as the
    authors' code of TIES does. A density of 1 keeps everything.

    Example:
        >>> smallest_kept(10, 0.2), smallest_kept(10, 1.0)
        (8, 1)
    """
    return max(elements - int(elements * density), 1)


def trim_thresholds(vectors: PrunedTaskVectors, density: float, transform: Transform | None = None) -> Tensor:
    """Return the magnitude that an element needs to stay, for each task over the whole model, ``(T,)``."""
    if density == 1:
        return torch.zeros(len(vectors.tasks), dtype=vectors.dtype)
    return kth_smallest_magnitude(vectors, smallest_kept(count_elements(vectors), density), transform)


def trim_(tau: Tensor, thresholds: Tensor) -> Tensor:
    """Zero what is smaller in magnitude than its row's threshold, in place.

    Example:
        >>> trim_(torch.tensor([[1.0, -3.0], [4.0, 2.0]]), torch.tensor([2.0, 3.0]))
        tensor([[ 0., -3.],
                [ 4.,  0.]])
    """
    return tau.masked_fill_(tau.abs() < per_row(thresholds, tau), 0)


def count_elements(vectors: PrunedTaskVectors) -> int:
    """Return the number of elements of one task vector over the whole model."""
    return sum(map(vectors.numel, vectors.names))


def kth_smallest_magnitude(vectors: PrunedTaskVectors, k: int, transform: Transform | None = None) -> Tensor:
    """Return each task's k-th smallest ``|tau|`` over the whole model; see `kth_smallest`.

    Args:
        vectors: What to stream over.
        k: The rank, counted from 1.
        transform: Gives the values whose magnitudes are ranked instead.

    Returns:
        ``(T,)``, on the CPU, in the dtype of the stacks.
    """

    def magnitudes(tau: Tensor, name: str) -> Tensor:
        return (tau if transform is None else transform(tau, name)).abs()

    return kth_smallest(vectors, k, magnitudes)


def kth_smallest(vectors: PrunedTaskVectors, k: int, transform: Transform) -> Tensor:
    """Return the k-th smallest value of each row over the whole model, exactly and without holding the model.

    The bits of floats, read as integers, order like the floats once those of negative ones are flipped. So digits of
    16 bits are fixed one after the other, from the highest: a pass over the stacks counts how often each value of
    the digit occurs among the elements that match the digits fixed so far. Float32 takes two passes.

    Args:
        vectors: What to stream over.
        k: The rank, counted from 1.
        transform: Gives the values, ``(T, *shape) -> (R, *shape)``; R is the same for all tensors.

    Returns:
        ``(R,)``, on the CPU, in the dtype of the stacks.

    Raises:
        ValueError: ``k`` is not in 1 ... number of elements.
    """
    total = count_elements(vectors)
    if not 1 <= k <= total:
        raise ValueError(f"k must lie in 1 ... {total}, not {k}.")
    bits = torch.finfo(vectors.dtype).bits
    digit_values = 1 << _DIGIT_BITS
    top = bits - _DIGIT_BITS
    found: list[int] = []
    remaining: list[int] = []
    for shift in range(top, -1, -_DIGIT_BITS):
        counts = torch.zeros(0, digit_values, dtype=torch.int64)
        for name in vectors.own_names:
            keys = _order_as_integers(as_rows(transform(vectors.stack(name), name)))
            if not len(counts):
                counts = counts.new_zeros(len(keys), digit_values)
            for row, key in enumerate(keys):
                # The highest digit holds the sign, so that it counts from the middle.
                if shift == top:
                    digits = (key >> shift) + digit_values // 2
                else:
                    digits = key[key >> (shift + _DIGIT_BITS) == found[row]] >> shift & (digit_values - 1)
                _count_(counts[row], digits)
        if shift == top:
            found, remaining = [0] * len(counts), [k] * len(counts)
        # A process without a tensor of its own has no rows.
        counts = torch.stack([part for part in vectors.share.exchange(counts) if len(part)]).sum(0)
        reached = counts.cumsum(1)
        for row in range(len(counts)):
            digit = int(torch.searchsorted(reached[row], remaining[row]))
            remaining[row] -= int(reached[row, digit] - counts[row, digit])
            found[row] = digit - digit_values // 2 if shift == top else found[row] << _DIGIT_BITS | digit
    values = torch.tensor(found, dtype=_INTEGERS[vectors.dtype])
    return _order_as_integers(values.view(vectors.dtype)).view(vectors.dtype)


def _count_(counts: Tensor, digits: Tensor) -> None:
    """Add how often each value occurs among the digits, in place."""
    if digits.numel() < counts.numel():
        # Small tensors are many in a model, and a sweep over all the counters for each would take most of the time.
        counts.scatter_add_(0, digits.long().cpu(), torch.ones(digits.numel(), dtype=counts.dtype))
    else:
        counts += torch.bincount(digits, minlength=len(counts)).cpu()


def _order_as_integers(values: Tensor) -> Tensor:
    """Map floats to integers of the same order, by an operation that is its own inverse on the bits."""
    integers = values.view(_INTEGERS[values.dtype])
    return torch.where(integers < 0, integers ^ torch.iinfo(integers.dtype).max, integers)


def elect_signs(tau: Tensor, tie: float) -> Tensor:
    """Elect one sign per weight: that of the sum over tasks, and ``tie`` where the sum is zero.

    Args:
        tau: ``(T, *shape)``.
        tie: +1, -1, or 0 where none is elected.

    Returns:
        +1, -1 or ``tie``, ``(*shape)``.

    Example:
        >>> elect_signs(torch.tensor([[1.0, -2.0, 1.0], [1.0, 1.0, -1.0]]), tie=-1.0)
        tensor([ 1., -1., -1.])
    """
    total = tau.sum(0)
    return torch.where(total == 0, tie, total.sign())


def agreeing_with(tau: Tensor, signs: Tensor) -> Tensor:
    """Mark the entries with the elected sign, ``(T, *shape)`` bool; where none is elected, the negative ones."""
    return torch.where(signs > 0, tau > 0, tau < 0)


def combine_agreeing(tau: Tensor, signs: Tensor, reduce: str) -> Tensor:
    """Combine, for each weight, the entries with the elected sign; zeros count as absent.

    Args:
        tau: ``(T, *shape)``.
        signs: +1, -1 or 0, ``(*shape)``.
        reduce: ``"mean"`` over the entries that agree, their ``"sum"``, or ``"max"``, the largest of them. Where no
            sign is elected the first two keep the negative entries and ``"max"`` keeps none, as in the code of TIES.

    Returns:
        ``(*shape)``; zero where no entry agrees.

    Example:
        >>> combine_agreeing(torch.tensor([[1.0, -2.0], [3.0, 1.0]]), torch.tensor([1.0, -1.0]), "mean")
        tensor([ 2., -2.])
    """
    agreeing = agreeing_with(tau, signs)
    chosen = torch.where(agreeing, tau, 0)
    if reduce == "max":
        return chosen.abs().amax(0) * signs
    total = chosen.sum(0)
    return total if reduce == "sum" else total / agreeing.sum(0).clamp_min(1)


def random_keep(shape: tuple[int, ...], probability: float | Tensor, *key: int | str) -> Tensor:
    """Draw which elements to keep, each with a given probability.

    The draw is made on the CPU from a generator of its own, seeded by all of ``key`` together. So it is the same
    whatever the order of tensors, the number of processes, or the device on which it is used.

    Args:
        shape: Shape of the result.
        probability: To keep an element; a number, or one for each element.
        key: The seed, then what tells this draw from others, such as the task and the tensor's name.

    Returns:
        Bool, ``shape``, on the CPU.

    Example:
        >>> bool((random_keep((4,), 0.5, 0, "a", "w") == random_keep((4,), 0.5, 0, "a", "w")).all())
        True
    """
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.rand(shape, generator=generator) < probability


def rescale_kept(tau: Tensor, keep: Tensor, probability: float | Tensor) -> Tensor:
    """Drop what is not kept and divide the rest by its probability of being kept, which leaves the mean unchanged.

    Example:
        >>> rescale_kept(torch.tensor([1.0, 2.0]), torch.tensor([True, False]), 0.5)
        tensor([2., 0.])
    """
    return torch.where(keep, tau / probability, 0)


def magnitude_probabilities(tau: Tensor, density: float, epsilon: float) -> Tensor:
    """Return keep probabilities that grow with the rank of ``|tau|`` inside each row of each task's tensor.

    A tensor is seen as a matrix ``(shape[0], rest)``, a vector or a scalar as one row. The m elements of a row get
    ``density - epsilon`` to ``density + epsilon`` in m equal steps from the smallest to the largest magnitude; of
    equal ones the first ranks lower. A row of one element gets ``density``.

    Args:
        tau: ``(T, *shape)``.
        density: The mean probability.
        epsilon: Half the window.

    Returns:
        ``(T, *shape)``.

    Example:
        >>> magnitude_probabilities(torch.tensor([[1.0, -3.0, 2.0]]), 0.5, 0.25)
        tensor([[0.2500, 0.7500, 0.5000]])
    """
    rows = tau.flatten(2) if tau.dim() > 2 else as_rows(tau)
    length = rows.shape[-1]
    if length == 1:
        return torch.full_like(tau, density)
    ranks = rows.abs().argsort(dim=-1, stable=True).argsort(dim=-1)
    probabilities = density - epsilon + ranks.to(tau.dtype) / (length - 1) * (2 * epsilon)
    return probabilities.reshape(tau.shape)


def keep_largest_(tau: Tensor, density: float) -> Tensor:
    """Zero all but the ``int(n * density)`` largest magnitudes of each row, in place; of equal ones the first stay.

    Example:
        >>> keep_largest_(torch.tensor([[1.0, -3.0, 3.0]]), 0.5)
        tensor([[ 0., -3.,  0.]])
    """
    rows = as_rows(tau)
    dropped = rows.abs().argsort(dim=1, descending=True, stable=True)[:, int(rows.shape[1] * density) :]
    return rows.scatter_(1, dropped, 0).view(tau.shape)


def tall_masks(tau: Tensor, merged: Tensor, tall_lambda: float) -> Tensor:
    """Mark the weights of a merged task vector that matter to each task: ``|tau_t| > lambda |merged - tau_t|``.

    Args:
        tau: ``(T, *shape)``.
        merged: ``(*shape)``.
        tall_lambda: The threshold lambda, at least 0.

    Returns:
        Bool, ``(T, *shape)``.

    Example:
        >>> tall_masks(torch.tensor([[1.0], [0.1]]), torch.tensor([1.1]), 0.4)
        tensor([[ True],
                [False]])
    """
    return tau.abs() > tall_lambda * (merged - tau).abs()
