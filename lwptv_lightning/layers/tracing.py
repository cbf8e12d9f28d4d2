"""Symbolic tracing of a model with timm's tracer settings, without touching the model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from lwptv_lightning.functional import plain_module, plain_state, uncompile_
from lwptv_lightning.registry import printable, require_kind


class TracingError(ValueError):
    """A model that torch.fx cannot trace; the message names its class and the reason."""


def trace(model: nn.Module) -> fx.GraphModule:
    """Trace a model into a graph that computes the model's output in eval mode.

    Arguments of ``forward`` that have a default are fixed to it, and what it computes from integer or non-persistent
    buffers alone is a constant of the graph. The graph module shares the model's parameters and buffers but none of
    its module objects, so that neither side's ``train()`` or ``eval()`` reaches the other, and nothing that tracing
    stores in a module (caches, constants) ends up in the model.

    Args:
        model: Any module. It may be in train or eval mode, and is not changed.

    Returns:
        A module that maps the required inputs of ``model`` to its output. Its node targets are the names of the
        model's modules and tensors.

    Raises:
        TracingError: The model cannot be traced, for example because a value decides what it executes.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.GELU())
        >>> [node.target for node in trace(model).graph.nodes]
        ['input', '0', '1', 'output']
    """
    require_kind("model", model, nn.Module, "a module")
    try:
        replica = replicate(model).eval()
        graph = _Tracer(floating_tensors(replica).values()).trace(replica, concrete_args=_default_arguments(replica))
        return fx.GraphModule(replica, graph, class_name=type(replica).__name__)
    except Exception as error:  # tracing runs the model's own code, which may raise anything
        reason = printable((str(error).strip().splitlines() or ["no reason given"])[0].rstrip("."))
        raise TracingError(
            f"torch.fx cannot trace {type(plain_module(model)).__name__}: {type(error).__name__}: {reason}."
        ) from error


def floating_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's own floating parameters and persistent buffers, tied ones under all their names."""
    state = plain_state(model, keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}


class _Tracer(fx.Tracer):
    """A tracer that does not enter what timm marks as untraceable, and never makes constants of ``weights``."""

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:  # unpickling a graph gives none
        timm_layers: Any = import_module("timm.layers")  # here, as importing timm takes a second
        super().__init__(autowrap_functions=tuple(timm_layers.get_notrace_functions()))
        self._leaf_classes = tuple(timm_layers.get_notrace_modules())
        self._weights = {id(weight) for weight in weights}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaf_classes) or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        # Not all buffers: some steer what forward executes, such as the rotary frequencies of DINOv3.
        self.proxy_buffer_attributes = id(attr_val) in self._weights
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class _SharedTensors(TorchFunctionMode):
    """Makes `copy.deepcopy` hand out tensors as they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.__deepcopy__ else func(*args, **(kwargs or {}))


def replicate(model: nn.Module) -> nn.Module:
    """Copy the module objects of a model and share its tensors; nothing of the copy is compiled."""
    # Parameters copy themselves without asking the function mode. Other tensors may be anywhere in a module, as in
    # the attention caches of LeViT, and those with a gradient function refuse to be copied.
    memo = {id(parameter): parameter for parameter in model.parameters()}
    with _SharedTensors():
        return uncompile_(copy.deepcopy(plain_module(model), memo))


def _default_arguments(model: nn.Module) -> dict[str, Any]:
    parameters = inspect.signature(type(model).forward).parameters.values()
    return {argument.name: argument.default for argument in parameters if argument.default is not argument.empty}
