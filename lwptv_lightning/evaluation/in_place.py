"""Run a model with heads in the place of its own classifier, whatever it does before and behind that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lwptv_lightning.functional import plain_module, plain_name
from lwptv_lightning.registry import require_known


@contextmanager
def in_place(model: nn.Module, heads: Mapping[str, nn.Module]) -> Iterator[nn.Module]:
    """Give a model whose modules at some paths are heads in the ``with`` block, on what these modules would be given.

    So they act on the very features that the classifier acts on: after pooling, norms and whatever the architecture has
    there. It is the model itself, which no code runs that was compiled before with its own classifier.

    Raises:
        UnknownNameError: The model has no such module.
        ValueError: It ran, and a head was passed over.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
        >>> with in_place(model, {"1": nn.Linear(2, 5)}) as running:
        ...     running(torch.zeros(4, 2, 1)).shape
        torch.Size([4, 5])
    """
    root = plain_module(model)
    every = list(root.named_modules(remove_duplicate=False))
    modules = {plain_name(path): module for path, module in every}
    stands: dict[str, _Stand] = {}
    with ExitStack() as stack:
        if any(f"{path}.".startswith(_prefix(around)) for around in _compiled(every) for path in heads):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for path, head in heads.items():
            require_known(f"module of {type(root).__name__}", path, modules)
            stands[path] = _Stand(head)
            stack.enter_context(_called_instead(modules[path], stands[path]))
        yield root
    for path, stand in stands.items():
        if not stand.has_run:
            raise ValueError(
                f"{type(root).__name__} does not call its module {path!r}, in whose place a head was to act; give a "
                "head that maps what the model returns."
            )


def _compiled(modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """Return the paths of compiled modules, by `torch.compile` or by their own method."""
    return [
        plain_name(path)
        for path, module in modules
        if plain_module(module) is not module or getattr(module, "_compiled_call_impl", None) is not None
    ]


def _prefix(path: str) -> str:
    return f"{path}." if path else ""


@contextmanager
def _called_instead(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Let calls of a module be those of a function, past its hooks too; all else of it stays where it is."""
    before = vars(module).get("_compiled_call_impl")  # where a compiled module has what is called in its stead
    module._compiled_call_impl = function  # type: ignore[assignment]
    try:
        yield
    finally:
        module._compiled_call_impl = before  # type: ignore[assignment]


@dataclass
class _Stand:
    """Is called in a classifier's stead, and knows whether it was."""

    head: nn.Module
    has_run: bool = False

    def __call__(self, features: Any, *others: Any, **named: Any) -> Any:
        self.has_run = True
        if _is_pooled_map(features) and not any(isinstance(part, _ConvNd) for part in self.head.modules()):
            # Of a classifier that is a 1x1 convolution; other heads take rows.
            return self.head(features.flatten(1), *others, **named)[..., None, None]
        return self.head(features, *others, **named)


def _is_pooled_map(features: Any) -> bool:
    return isinstance(features, Tensor) and features.ndim == 4 and features.shape[2:] == (1, 1)
