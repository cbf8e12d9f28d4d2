"""The classes and functions that checkpoints name, by their names alone, and the tensors that are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import CheckpointError, some_of
from lwptv_lightning.checkpoints.mapped import MOST_DIMENSIONS
from lwptv_lightning.registry import shown


class ForeignCodeError(ValueError):
    """A file that is code, or an object of a class that no weights are made of, by its name."""


@dataclass(eq=False)
class Opaque:
    """An object that no weights are made of, which is left unmade.

    Attributes:
        what: The class, or the function whose result it would be.
        arguments: What that would have been called with.
        state: What its attributes would have been set from.
    """

    what: str
    arguments: Any = ()
    state: Any = None

    def __repr__(self) -> str:
        return f"<{self.what}>"


def unmade_error(source: str, what: str, names: Sequence[object] = ()) -> CheckpointError:
    """Return the refusal of a file whose weights stand in objects of other classes than tensors and mappings."""
    where = f" in the place of tensors ({some_of(names, 3).removesuffix('.')})" if names else ""
    return CheckpointError(
        f"{source}: holds pickled Python objects{where}, which are never unpickled here because that can run code; the "
        f"first is {shown(what)}. Where you trust the file, load it yourself and store the weights alone: "
        "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')."
    )


@dataclass(frozen=True)
class Named:
    """A class or function by its name."""

    name: str


STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
    **{"QInt8Storage": torch.int8, "QUInt8Storage": torch.uint8, "QInt32Storage": torch.int32},
}
REBUILD = "torch._utils._rebuild_"
_SPARSE = torch.zeros(1).to_sparse()
"""Stands for a tensor that is no dense one, which is told where it is needed."""


def rebuilt(how: str, arguments: tuple[Any, ...]) -> Any:
    """Return what the function ``torch._utils._rebuild_<how>`` would: a tensor, or what stands for one that is none."""
    if how in ("parameter", "parameter_with_state"):
        data, *_ = arguments
        return data
    if how == "tensor":
        storage, start, size, stride = arguments
        return view_of(storage, start, size, stride)
    if how == "tensor_v2":
        storage, start, size, stride, _grad, _hooks, *more = arguments
        return _plain(view_of(storage, start, size, stride), *more)
    if how == "tensor_v3":
        storage, start, size, stride, _grad, _hooks, dtype, *more = arguments
        return _plain(view_of(_viewed(storage, _dtype(dtype)), start, size, stride), *more)
    if how == "meta_tensor_no_storage":
        dtype, size, stride, _grad = arguments
        return torch.empty_strided(size, stride, dtype=_dtype(dtype), device="meta")
    if how == "wrapper_subclass":
        kind, *_ = arguments
        return Opaque(kind.name if isinstance(kind, Named) else how, arguments)
    return _SPARSE if how in ("qtensor", "sparse_tensor") else Opaque(f"{REBUILD}{how}", arguments)


def _dtype(named: Named) -> torch.dtype:
    found = vars(torch).get(named.name.removeprefix("torch."))
    if not isinstance(found, torch.dtype):
        raise TypeError(f"{named.name} is no dtype")
    return found


def _viewed(storage: Tensor, kind: torch.dtype) -> Tensor:
    """Return bytes as numbers, copied where they stand askew."""
    return (storage.clone() if storage.storage_offset() % kind.itemsize else storage).view(kind)


def _plain(tensor: Tensor, metadata: Mapping[str, Any] | None = None) -> Tensor:
    """Return a tensor with what was done to it lazily, and is not done here either."""
    if not set(metadata or {}) <= {"conj", "neg"}:
        raise ValueError("a tensor with attributes that torch.save does not write")
    for done, function in (("conj", torch.conj), ("neg", torch._neg_view)):
        tensor = function(tensor) if metadata and metadata.get(done) else tensor
    return tensor


def view_of(storage: Any, start: Any, size: Any, stride: Any) -> Tensor:
    """Return a view of stored numbers, none of which lies outside of them."""
    if not isinstance(storage, Tensor):
        raise TypeError("a tensor of what are no stored numbers")
    if any(type(each) not in (tuple, list) or len(each) > MOST_DIMENSIONS for each in (size, stride)):
        raise TypeError("a tensor whose size is none")
    numbers = (start, *size, *stride)
    if len(size) != len(stride) or any(type(each) is not int for each in numbers):
        raise TypeError("a tensor whose size is none")
    reach = start + 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min(numbers) < 0 or (0 not in size and reach > len(storage)) or start > len(storage):
        raise ValueError(f"a tensor of shape {tuple(size)} reaches beyond its {len(storage)} stored numbers")
    return storage.as_strided(size, stride, storage.storage_offset() + start)
