"""What PEFT makes of the modules of a model: which it adapts by factors, and which it can copy as a whole."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import nn

from lwptv_lightning.checkpoints.checkpoint import TensorHeader

LINEAR, TRANSPOSED, EMBEDDING, CONVOLUTION, ATTENTION = "linear", "transposed", "embedding", "convolution", "attention"
"""What the factors of a module's weight are for; transposed is transformers' Conv1D, attention torch's fused one."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_COLLECTIONS = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList)
"""What PEFT puts into no ``modules_to_save``."""
_TAKEN = re.compile(r"(?<!isinstance\()\bself\.((?:\w+\.)+)(\w+)\b(?!\.(?:dtype|device|shape|size|ndim))")
"""How code takes what belongs to a module, such as its weight, and not what it asks of that."""
_OWN_METHOD = re.compile(r"\bself\.(\w+)\(")
_KEPT = frozenset(("training", "in_features", "out_features"))
"""What PEFT's module in a layer's place has as the layer has it."""
_LINEAR_NAME = re.compile(r"(.*_)?(proj|projection|qkv|query|key|value|dense|fc\d*|lin\d*|linear\d*|head|classifier)")
"""What linear layers without biases are called, whose weights could be embeddings."""


@dataclass(frozen=True)
class AdaptedModule:
    """What is known of a module.

    Attributes:
        tensors: Own name to the name in the checkpoint; None where the checkpoint has no such tensor.
        kind: What its weight's factors are for; None for a weight that has none.
        is_plain: Whether it can be copied as a whole: it has all its state by itself, and the checkpoint has all of it.
    """

    tensors: Mapping[str, str | None] = field(default_factory=dict)
    kind: str | None = None
    is_plain: bool = True


def modules_of(model: nn.Module, named: Mapping[str, str]) -> dict[str, AdaptedModule]:
    """Return path to what is known of the module, of all modules of a model.

    Args:
        model: The model.
        named: The model's name to the checkpoint's of each tensor that the checkpoint has.

    Example:
        >>> modules_of(nn.Sequential(nn.Linear(1, 1, bias=False)), {"0.weight": "w"})["0"]
        AdaptedModule(tensors={'weight': 'w'}, kind='linear', is_plain=True)
    """
    state = _by_path(model.state_dict())
    inner = {path[:place] for path in state for place in _dots(path)}
    modules, bypassed = {}, _bypassed(model)
    for path, module in model.named_modules(remove_duplicate=False):
        tensors = {own: named.get(full) for own, full in state.get(path, {}).items()}
        is_plain = path not in inner and None not in tensors.values() and _is_copyable(path, module)
        # PEFT replaces modules, but for the model itself; what is not called as a module is not replaced.
        kind = _kind_of(module) if path and path not in bypassed else None
        modules[path] = AdaptedModule(tensors, kind, is_plain)
    return modules


def modules_by_names(headers: Mapping[str, TensorHeader]) -> dict[str, AdaptedModule]:
    """Return path to what is known of the module, as far as the names and shapes of a checkpoint's tensors tell.

    What may be something else than a linear layer, as all convolutions may, which can have groups, has no kind.
    """
    state = _by_path(headers)
    inner = {path[:place] for path in state for place in _dots(path)}
    shapes = {path: {own: headers[name].shape for own, name in tensors.items()} for path, tensors in state.items()}
    fused = {path for path, own in shapes.items() if "in_proj_weight" in own}  # which takes its output's weight
    kinds = {
        path: _kind_by_shape(path, own)
        for path, own in shapes.items()
        if path and path not in inner and path.rpartition(".")[0] not in fused
    }
    if TRANSPOSED in kinds.values():  # a square matrix beside may be either
        kinds = {path: None if _is_square(shapes[path]) else kind for path, kind in kinds.items()}
    modules = {path: AdaptedModule(is_plain=False) for path in inner}
    for path, tensors in state.items():
        is_list = any(own.isdigit() for own in tensors)
        is_plain = path not in inner and not is_list and "parametrizations" not in path.split(".")
        modules[path] = AdaptedModule(tensors, kinds.get(path), is_plain)
    return modules


def _kind_of(module: nn.Module) -> str | None:
    """Return what PEFT adapts a module as; None for classes of which it does not know how they use their weights."""
    if type(module) is nn.Linear:
        return LINEAR
    if type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils":
        return TRANSPOSED
    if type(module) is nn.Embedding and module.max_norm is None:
        return EMBEDDING
    if type(module) in _CONVOLUTIONS and isinstance(module, _CONVOLUTIONS):
        # PEFT gives its factors neither groups, nor dilation, nor another padding than zeros.
        is_usual = module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
        return CONVOLUTION if is_usual else None
    if type(module) is nn.MultiheadAttention and module.in_proj_weight is not None:
        return ATTENTION
    return None


def _is_copyable(path: str, module: nn.Module) -> bool:
    """Whether PEFT can put a copy of a module in its place, which one with hooks, as of a weight norm, would not be."""
    is_parametrized = "parametrizations" in path.split(".")
    return not isinstance(module, _COLLECTIONS) and not is_parametrized and not module._forward_pre_hooks


def _bypassed(model: nn.Module) -> set[str]:
    """Return the paths of modules of which the code around them takes what PEFT's module in their place has not.

    That is the weight, taken without calling the module, as timm's BEiT does: factors would have no effect until they
    are merged. Or it is an attribute, such as the stride in transformers' Whisper: the model would not run with them.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found = set()
    for path, module in modules.items():
        kind: Callable[..., Any] = type(module)
        for inner, own in _taken(kind) if next(module.children(), None) is not None else ():
            full = f"{path}.{inner}".lstrip(".")
            is_weight = own in ("weight", "in_proj_weight")
            if full in modules and (is_weight or own in vars(modules[full]).keys() - _KEPT):
                found.add(full)
    return found


@cache
def _taken(kind: Callable[..., Any]) -> frozenset[tuple[str, str]]:
    """Return what a module's ``forward``, and its methods that this calls, take: path of an inner module, and name."""
    wanted = ["forward"]
    seen: set[str] = set()
    found: set[tuple[str, str]] = set()
    while wanted:
        name = wanted.pop()
        function = getattr(kind, name, None)
        if name in seen or not callable(function) or (hasattr(nn.Module, name) and name != "forward"):
            continue
        seen.add(name)
        source = _source(function)
        wanted += _OWN_METHOD.findall(source)
        found |= {(path.rstrip("."), own) for path, own in _TAKEN.findall(source)}
    return frozenset(found)


def _source(function: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # made by other means than a file
        return ""


def _kind_by_shape(path: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    weight, bias = shapes.get("weight", ()), shapes.get("bias")
    if len(weight) != 2 or not shapes.keys() <= {"weight", "bias"}:
        return None
    if bias is None:
        return LINEAR if _LINEAR_NAME.fullmatch(path.rpartition(".")[2]) else None
    if bias == weight[:1]:
        return LINEAR
    return TRANSPOSED if bias == weight[1:] else None


def _is_square(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return len(set(shapes.get("weight", ()))) == 1


def _by_path(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return path to own name to full name."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        path, _, own = name.rpartition(".")
        found.setdefault(path, {})[own] = name
    return found


def _dots(path: str) -> list[int]:
    """Return where the paths end of the modules around one; the model itself is around all but itself."""
    return [0, *(place for place, letter in enumerate(path) if letter == ".")] if path else []
