"""Run a function that converts a state dict without reading a tensor; read only what each result needs, when asked.

The function sees tensors without data, of a kind that records which operations were applied. A tensor of the result is
computed from the file when it is read, so that timm's converters, written for whole state dicts, stay lazy here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError, FunctionReader, TensorHeader


def convert(checkpoint: Checkpoint, function: Callable[[dict[str, Tensor]], Mapping[str, Any]]) -> Checkpoint:
    """Return a checkpoint with the tensors that a function makes of another's.

    The function may do what returns new tensors and does not look at values; that it writes into a tensor is an error.

    Example:
        >>> from lwptv_lightning import open_checkpoint
        >>> halves = open_checkpoint({"q": torch.ones(1, 2), "k": torch.zeros(1, 2)})
        >>> joined = convert(halves, lambda state: {"qk": torch.cat([state["q"], state["k"]])})
        >>> joined.headers["qk"].shape, joined.read("qk").tolist()
        ((2, 2), [[1.0, 1.0], [0.0, 0.0]])
    """
    state: dict[str, Tensor] = {}
    for name, header in checkpoint.headers.items():
        stored = torch.empty(header.shape, dtype=header.dtype, device="meta").as_subclass(_Recorded)
        stored.formula = _Call(checkpoint.read, (name,), {})
        state[name] = stored
    converted = {name: value for name, value in function(state).items() if isinstance(value, Tensor)}
    formulas = {name: _formula_of(value) for name, value in converted.items()}
    return checkpoint.with_tensors(TensorHeader.of_all(converted), FunctionReader(partial(_calculate, formulas)))


@dataclass(frozen=True)
class _Call:
    """The result of a function, whose arguments may be such formulas."""

    function: Callable[..., Any]
    args: Any
    kwargs: Any


_EMPTY = ("new_empty", "empty_like", "new_empty_strided")
"""What gives numbers that happen to be in memory, as timm's functions do of tensors without data."""


class _Recorded(Tensor):
    """A tensor without data that knows how it is computed."""

    formula: _Call

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            raise CheckpointError(f"a conversion may not write into a tensor, as {name!r} does.")
        if name in _EMPTY:
            raise CheckpointError(f"a conversion may not make what no tensor says, as {name!r} does.")
        result = super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        if name == "__get__":  # an attribute such as .T, whose getter cannot be pickled
            func, args = getattr, (*args, func.__self__.__name__)
        call = _Call(func, *pytree.tree_map(_formula_of, (args, kwargs or {})))
        if isinstance(result, _Recorded):
            result.formula = call
        elif isinstance(result, tuple | list):
            for position, part in enumerate(result):
                if isinstance(part, _Recorded):
                    part.formula = _Call(getitem, (call, position), {})
        return result


def _formula_of(value: Any) -> Any:
    return value.formula if isinstance(value, _Recorded) else value


def _calculate(formulas: Mapping[str, Any], name: str) -> Tensor:
    tensor: Tensor = _value_of(formulas[name])
    return tensor


def _value_of(formula: Any) -> Any:
    if not isinstance(formula, _Call):
        return formula
    args, kwargs = pytree.tree_map(_value_of, (formula.args, formula.kwargs))
    return formula.function(*args, **kwargs)
