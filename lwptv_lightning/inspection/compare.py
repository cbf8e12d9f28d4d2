"""A stored model beside the tensors that it should hold, which are made piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.checkpoints import Checkpoint
from lwptv_lightning.functional import sum_dtype
from lwptv_lightning.task_vectors import TaskVectors


@dataclass(frozen=True)
class TensorDifference:
    """How a stored tensor is not what it should be.

    Attributes:
        elements: How many elements differ.
        of: How many it has.
        largest: Largest absolute difference.
        note: What cannot be told in numbers, such as another shape.
    """

    elements: int = 0
    of: int = 0
    largest: float = 0.0
    note: str = ""

    def __str__(self) -> str:
        return self.note or f"{self.elements} of {self.of} elements differ, by up to {self.largest:.3g}"


def compare_pieces(
    stored: Checkpoint, pieces: Iterable[tuple[str, slice, Tensor]], held_in: Sequence[torch.dtype] = ()
) -> dict[str, TensorDifference]:
    """Compare pieces of tensors, bit for bit, with the tensors of a checkpoint, which must be of their dtypes.

    Args:
        stored: The checkpoint.
        pieces: Tensor name, which of its flattened elements, and what these should be.
        held_in: Narrower dtypes that the stored values may have been in meanwhile.

    Returns:
        The tensors that differ.
    """
    found: dict[str, TensorDifference] = {}
    for name, elements, values in pieces:
        own, values = stored.read(name).reshape(-1)[elements], values.detach().cpu().reshape(-1)
        forms = [values, *(values.to(dtype).to(values.dtype) for dtype in held_in if values.is_floating_point())]
        unlike = [_bits(own) != _bits(form) for form in forms]
        best = min(range(len(forms)), key=lambda index: int(unlike[index].sum()))
        if count := int(unlike[best].sum()):
            changes = (own.double() - forms[best].double())[unlike[best]].abs()
            before = found.get(name, TensorDifference(of=stored.headers[name].numel))
            largest = max(before.largest, float(changes.nan_to_num(torch.inf, torch.inf).max()))
            found[name] = TensorDifference(before.elements + count, before.of, largest)
    return found


def _bits(values: Tensor) -> Tensor:
    """Return values as whole numbers, in which a NaN equals itself and the zeros of both signs are two."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return values.contiguous().view(whole[values.dtype.itemsize])


def vector_pieces(
    stored: Checkpoint, vectors: TaskVectors, names: Iterable[str], density: float
) -> Iterator[tuple[str, slice, Tensor]]:
    """Make a stored task vector again, a tensor at a time: fine-tuned minus base.

    Where only the largest entries were kept, what is zero in the file is taken for left out as far as it can be: no
    entry that is left out may be larger than one that is kept.
    """
    (task,) = vectors.tasks
    limit = _smallest_kept(stored, vectors, density)
    for name in names:
        difference, base = vectors.expert(task, name), vectors.base(name)
        wide = sum_dtype(base.dtype)
        difference = difference.to(wide) - base.to(wide)
        values = difference.to(stored.headers[name].dtype)
        if limit is not None:
            values = torch.where(
                (stored.read(name) == 0) & (difference.abs() <= limit), torch.zeros_like(values), values
            )
        yield name, slice(0, None), values.reshape(-1)


def _smallest_kept(stored: Checkpoint, vectors: TaskVectors, density: float) -> float | None:
    """Return the least magnitude of the weights' entries in a file; None where all entries are kept."""
    if density == 1:
        return None
    least = torch.inf
    for name in vectors.names:
        entries = stored.read(name).abs().double() if name in stored.headers else torch.zeros(0)
        least = min(least, float(entries[entries > 0].min()) if bool((entries > 0).any()) else torch.inf)
    return least
