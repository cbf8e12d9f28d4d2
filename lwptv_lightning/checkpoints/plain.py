"""What a tensor of a state dict must be to be read: dense, of numbers that torch computes with, and with values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from lwptv_lightning.checkpoints.checkpoint import CheckpointError, some_of


def plain_tensors(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return tensors as plain ones that share their values: without gradient, class of their own or lazy conjugation.

    Raises:
        CheckpointError: Some are none of which values can be read.
    """
    found: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if kind := next((kind for kind, is_it in _KINDS.items() if is_it(tensor)), None):
            found.setdefault(kind, []).append(name)
    for kind, names in found.items():
        raise CheckpointError(f"{source}: these tensors are {kind}: {some_of(names)}")
    with torch.no_grad():
        return {
            name: tensor.detach().as_subclass(Tensor).resolve_conj().resolve_neg() for name, tensor in tensors.items()
        }


def _is_odd_class(tensor: Tensor) -> bool:
    """Whether a class decides itself what operations do, as those of shards and of quantised weights do."""
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__


def _has_no_values(tensor: Tensor) -> bool:
    """Whether there is no memory behind a tensor, as behind those of tracing and of ``torch.func``."""
    try:
        here = tensor.device.type in ("cpu", "cuda") and tensor.numel() > 0
        return here and not tensor.untyped_storage().data_ptr()
    except Exception:  # each kind refuses in its own way
        return True


@cache
def _computes(dtype: torch.dtype) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a dtype is new to torch
            numbers = torch.zeros(1, dtype=dtype)
        numbers.clone().to(torch.complex128 if dtype.is_complex else torch.float64)
    except Exception:  # each kind refuses in its own way
        return False
    return True


_KINDS: dict[str, Callable[[Tensor], bool]] = {
    "not initialised, as those of a lazy module before its first batch": is_lazy,
    "nested; make a tensor of each part": lambda tensor: tensor.is_nested,
    "sparse or quantized; make them dense": lambda tensor: tensor.layout != torch.strided or tensor.is_quantized,
    "on the meta device, which holds no values; load them first": lambda tensor: tensor.is_meta,
    "of a class of their own, such as shards or quantized weights; make them plain, by full_tensor() or dequantize()": (
        _is_odd_class
    ),
    "without values, as those of tracing and of torch.func are": _has_no_values,
    "of a dtype that torch does not compute in": lambda tensor: not _computes(tensor.dtype),
}
"""What makes a tensor unreadable, as it is told; the first that holds is said."""
