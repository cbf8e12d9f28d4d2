"""Tensor operations that several merging rules share.

Shapes: T tasks; ``tau`` is a stack of task vectors ``(T, *shape)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from lwptv_lightning.pruned_task_vectors import PrunedTaskVectors

_DIGIT_BITS = 16


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Shape T numbers so that they act on the rows of a stack: ``(T,) -> (T, 1, ..., 1)``.

    Example:
        >>> per_row(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4)).shape
        torch.Size([2, 1, 1])
    """
    return values.to(like.device, like.dtype).reshape(-1, *[1] * (like.dim() - 1))


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


def trim_thresholds(vectors: PrunedTaskVectors, density: float) -> Tensor:
    """Return the magnitude that an element needs to stay, for each task over the whole model, ``(T,)``."""
    if density == 1:
        return torch.zeros(len(vectors.tasks), dtype=vectors.dtype)
    return kth_smallest_magnitude(vectors, smallest_kept(sum(map(vectors.numel, vectors.names)), density))


def trim_(tau: Tensor, thresholds: Tensor) -> Tensor:
    """Zero what is smaller in magnitude than its row's threshold, in place.

    Example:
        >>> trim_(torch.tensor([[1.0, -3.0], [4.0, 2.0]]), torch.tensor([2.0, 3.0]))
        tensor([[ 0., -3.],
                [ 4.,  0.]])
    """
    return tau.masked_fill_(tau.abs() < per_row(thresholds, tau), 0)


def kth_smallest_magnitude(
    vectors: PrunedTaskVectors, k: int, transform: Callable[[Tensor, str], Tensor] | None = None
) -> Tensor:
    """Return each task's k-th smallest ``|tau|`` over the whole model, exactly and without holding the model.

    The bits of non-negative floats order like the floats. So digits of 16 bits are fixed one after the other, from
    the highest: a pass over the stacks counts how often each value of the digit occurs among the elements that match
    the digits fixed so far. Float32 takes two passes.

    Args:
        vectors: What to stream over.
        k: The rank, counted from 1.
        transform: Maps a stack and its tensor's name to other values whose magnitudes are ranked instead.

    Returns:
        ``(T,)``, on the CPU, in the dtype of the stacks.

    Raises:
        ValueError: ``k`` is not in 1 ... number of elements.
    """
    total = sum(map(vectors.numel, vectors.names))
    if not 1 <= k <= total:
        raise ValueError(f"k must lie in 1 ... {total}, not {k}.")
    tasks = len(vectors.tasks)
    bits = torch.finfo(vectors.dtype).bits
    integers = {32: torch.int32, 64: torch.int64}[bits]
    prefix = [0] * tasks
    remaining = [k] * tasks
    for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        counts = torch.zeros(tasks, 1 << _DIGIT_BITS, dtype=torch.int64)
        for name in vectors.names:
            stack = vectors.stack(name)
            values = stack if transform is None else transform(stack, name)
            for task, row in enumerate(values.reshape(tasks, -1).abs().view(integers)):
                digits = row >> shift
                if shift < bits - _DIGIT_BITS:
                    matching = digits >> _DIGIT_BITS == prefix[task]
                    digits = digits[matching] & ((1 << _DIGIT_BITS) - 1)
                counts[task] += torch.bincount(digits, minlength=1 << _DIGIT_BITS).cpu()
        reached = counts.cumsum(1)
        for task in range(tasks):
            digit = int(torch.searchsorted(reached[task], remaining[task]))
            remaining[task] -= int(reached[task, digit] - counts[task, digit])
            prefix[task] = prefix[task] << _DIGIT_BITS | digit
    return torch.tensor(prefix, dtype=integers).view(vectors.dtype)


def elect_signs(tau: Tensor, tie: float) -> Tensor:
    """Elect one sign per weight: that of the sum over tasks, and ``tie`` where the sum is zero.

    Args:
        tau: ``(T, *shape)``.
        tie: +1 or -1.

    Returns:
        +1 or -1, ``(*shape)``.

    Example:
        >>> elect_signs(torch.tensor([[1.0, -2.0, 1.0], [1.0, 1.0, -1.0]]), tie=-1.0)
        tensor([ 1., -1., -1.])
    """
    total = tau.sum(0)
    return torch.where(total == 0, tie, total.sign())


def combine_agreeing(tau: Tensor, signs: Tensor, reduce: str) -> Tensor:
    """Combine, for each weight, the entries with the elected sign; zeros count as absent.

    Args:
        tau: ``(T, *shape)``.
        signs: +1 or -1, ``(*shape)``.
        reduce: ``"mean"`` over the entries that agree, their ``"sum"``, or ``"max"``, the largest of them.

    Returns:
        ``(*shape)``; zero where no entry agrees.

    Example:
        >>> combine_agreeing(torch.tensor([[1.0, -2.0], [3.0, 1.0]]), torch.tensor([1.0, -1.0]), "mean")
        tensor([ 2., -2.])
    """
    agreeing = tau * signs > 0
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


def keep_largest_(tau: Tensor, count: int) -> Tensor:
    """Zero all but the ``count`` largest magnitudes of each row, in place; of equal ones the first stay.

    Example:
        >>> keep_largest_(torch.tensor([[1.0, -3.0, 3.0]]), 1)
        tensor([[ 0., -3.,  0.]])
    """
    rows = tau.view(len(tau), -1)
    dropped = rows.abs().argsort(dim=1, descending=True, stable=True)[:, count:]
    rows.scatter_(1, dropped, 0)
    return tau


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
