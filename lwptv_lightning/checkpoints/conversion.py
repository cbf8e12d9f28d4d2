"""Run a function that converts a state dict without reading a tensor; read only what each result needs, when asked.

The function sees tensors without data, of a kind that records which operations were applied. A tensor of the result is
computed from the file when it is read, so that timm's converters, written for whole state dicts, stay lazy here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError, TensorHeader


def convert(checkpoint: Checkpoint, function: Callable[[dict[str, Tensor]], Mapping[str, Any]]) -> Checkpoint:
    """Return a checkpoint with the tensors that a function makes of another's.

    Args:
        checkpoint: What to convert.
        function: State dict to state dict, in operations that return new tensors and do not look at values.

    Returns:
        The converted checkpoint.

    Raises:
        CheckpointError: The function writes into a tensor. What else it raises passes through.

    Example:
        >>> from lwptv_lightning import open_checkpoint
        >>> halves = open_checkpoint({"q": torch.ones(1, 2), "k": torch.zeros(1, 2)})
        >>> joined = convert(halves, lambda state: {"qk": torch.cat([state["q"], state["k"]])})
        >>> joined.headers["qk"].shape, joined.read("qk").tolist()
        ((2, 2), [[1.0, 1.0], [0.0, 0.0]])
    """
    state: dict[str, Tensor] = {name: _recorded(_Stored(name), header) for name, header in checkpoint.headers.items()}
    converted = {name: value for name, value in function(state).items() if isinstance(value, Tensor)}
    formulas = {name: value.formula if isinstance(value, _Recorded) else value for name, value in converted.items()}
    return checkpoint.with_tensors(TensorHeader.of_all(converted), _Calculator(checkpoint, formulas))


@dataclass(frozen=True)
class _Stored:
    """A tensor of the checkpoint."""

    name: str


@dataclass(frozen=True)
class _Call:
    """The result of a function, whose arguments may be such formulas."""

    function: Callable[..., Any]
    args: Any
    kwargs: Any


class _Recorded(Tensor):
    """A tensor without data that knows how it is computed."""

    formula: _Stored | _Call

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            raise CheckpointError(f"a conversion may not write into a tensor, as {name!r} does.")
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


def _recorded(formula: _Stored, header: TensorHeader) -> _Recorded:
    tensor = torch.empty(header.shape, dtype=header.dtype, device="meta").as_subclass(_Recorded)
    tensor.formula = formula
    return tensor


def _formula_of(value: Any) -> Any:
    return value.formula if isinstance(value, _Recorded) else value


@dataclass(frozen=True)
class _Calculator:
    """Reads converted tensors, each computed from what is stored."""

    checkpoint: Checkpoint
    formulas: Mapping[str, Any]

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._compute(self.formulas[name])
        return tensor

    def _compute(self, formula: Any) -> Any:
        if isinstance(formula, _Stored):
            return self.checkpoint.read(formula.name)
        if isinstance(formula, _Call):
            args, kwargs = pytree.tree_map(self._compute, (formula.args, formula.kwargs))
            return formula.function(*args, **kwargs)
        return formula
