"""The classes and functions that checkpoints name, by their names alone, and the tensors that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.checkpoints.mapped import MOST_DIMENSIONS


class ForeignCodeError(ValueError):
    """A pickle that names a class or function which no weights are made of."""


@dataclass(frozen=True, eq=False)
class Opaque:
    """An object that no weights are made of, which is left unmade."""

    what: str

    def __repr__(self) -> str:
        return f"<{self.what}>"


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
_HARMLESS = {
    *("collections.OrderedDict", "collections.Counter", "_codecs.encode"),
    *("builtins.bytearray", "builtins.set", "builtins.complex"),
    *("torch.Size", "torch.Tensor", "torch.device", "torch.nn.parameter.Parameter", "torch.serialization._get_layout"),
    *("torch._tensor._rebuild_from_type_v2", "torch.storage.UntypedStorage", "torch.storage.TypedStorage"),
}
"""What training checkpoints hold beside tensors, their dtypes and the functions that rebuild them."""
REBUILD = "torch._utils._rebuild_"
_REBUILT = {
    *("parameter", "parameter_with_state", "tensor", "tensor_v2", "tensor_v3", "qtensor", "sparse_tensor"),
    *("meta_tensor_no_storage", "nested_tensor", "wrapper_subclass"),
    *("device_tensor_from_numpy", "device_tensor_from_cpu_tensor"),
}
_SPARSE = torch.zeros(1).to_sparse()
"""Stands for a tensor that is no dense one, which is told where it is needed."""


def known_name(name: str) -> str:
    """Return the name of a class or function that may stand in a checkpoint; it is not looked up."""
    inside = name.removeprefix("torch.").removeprefix("cuda.").removeprefix("sparse.")
    is_torchs = name.startswith("torch.") and (
        isinstance(vars(torch).get(inside), torch.dtype | torch.qscheme)
        or (inside.isalnum() and inside.endswith(("Storage", "Tensor")))
    )
    if is_torchs or name in _HARMLESS or name.removeprefix(REBUILD) in _REBUILT or name in _trusted():
        return name
    raise ForeignCodeError(name)


def _trusted() -> set[str]:
    """Return the names of what the user has told torch to trust; it is left unmade, but no reason to refuse a file."""
    given = (each if isinstance(each, tuple) else (each, None) for each in torch.serialization.get_safe_globals())
    return {name or f"{each.__module__}.{each.__qualname__}" for each, name in given}


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
    return _SPARSE if how in ("qtensor", "sparse_tensor") else Opaque(how)


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
