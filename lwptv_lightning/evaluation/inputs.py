"""Batches that are more than one tensor: dicts, tuples and dataclasses of tensors, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

_ROWS = 16
"""How many samples to make a fingerprint of at once, whose numbers take eight bytes each."""


def inputs_of(module: Any, batch: Any) -> Any:
    """Return the inputs of a batch for a `MergeModule`; it may be inputs alone: a tensor, ``(inputs,)``, no targets."""
    alone = module.interface.alone(batch)
    return module.unpack(batch)[0] if alone is None else alone[0]


def tensors_of(batch: Any) -> list[Tensor]:
    """Return the tensors in dicts, lists, tuples and dataclasses, in their order."""
    found: list[Tensor] = []
    apply_to_collection(batch, Tensor, found.append)
    return found


def count_samples(inputs: Any) -> int:
    """Return how many samples inputs hold: the length of their first tensor that has one.

    Raises:
        ValueError: There is none.

    Example:
        >>> count_samples({"scale": torch.tensor(1.0), "images": torch.zeros(5, 3)})
        5
    """
    for tensor in tensors_of(inputs):
        if tensor.ndim:
            return len(tensor)
    raise ValueError(f"inputs of type {type(inputs).__name__} hold no tensor of samples, (B, ...).")


def take_samples(inputs: Any, first: int, end: int) -> Any:
    """Return inputs of the samples from ``first`` up to ``end``; what is not of a length with the samples stays whole.

    Example:
        >>> take_samples((torch.arange(4), {"mask": torch.arange(4)}), 1, 3)
        (tensor([1, 2]), {'mask': tensor([1, 2])})
    """
    size = count_samples(inputs)

    def part(tensor: Tensor) -> Tensor:
        return tensor[first:end] if tensor.ndim and len(tensor) == size else tensor

    return apply_to_collection(inputs, Tensor, part)


def each_sample(inputs: Any) -> Iterator[Any]:
    """Yield inputs of one sample after the other, each ``(1, ...)``."""
    for index in range(count_samples(inputs)):
        yield take_samples(inputs, index, index + 1)


def fingerprints(batch: Any) -> Tensor:
    """Return a whole number ``(B,)`` for each sample of a batch, by which equal samples are known again anywhere.

    Tensors that are not of a length with the first one count in every sample.
    """
    tensors = [tensor.detach() for tensor in tensors_of(batch)]
    size = next((len(tensor) for tensor in tensors if tensor.ndim), 1)
    total = torch.zeros(size, dtype=torch.int64)
    for place, tensor in enumerate(tensors, start=1):
        rows = tensor if tensor.ndim and len(tensor) == size else tensor.reshape(1, -1)
        numbers = torch.cat([_number(part) for part in torch.split(rows.reshape(len(rows), -1), _ROWS)])
        total += numbers.cpu() * (2 * place + 1)
    return total


def _number(rows: Tensor) -> Tensor:
    """Return a sum of the bits of each row, weighted by place; it wraps around, and is exact in any order."""
    values = rows.to(torch.float64).view(torch.int64)
    places = torch.arange(1, values.shape[1] + 1, device=rows.device)
    return ((values ^ (values >> 29)) * (places * 0x9E3779B1 | 1)).sum(1)
