"""Call a module with other tensors than its own, and leave it as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call_with(module: nn.Module, tensors: Mapping[str, Tensor], *arguments: Any) -> Any:
    """Call a module with some parameters and buffers replaced, under all names that they have in it.

    `torch.func.functional_call` replaces a tensor once for each of its names and takes that back in the same order, so
    that a submodule which stands at two places keeps what it was given. Here each is replaced once. What the module
    computed of tensors, and keeps while it is evaluated, is of these tensors during the call, and forgotten afterwards.

    Args:
        module: What to call; afterwards it has the tensors that it had.
        tensors: Name in the module to tensor. Of one tensor under several names the last one's counts.
        arguments: Of the call.

    Raises:
        KeyError: The module has no tensor of a name.

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> both, own = nn.Sequential(layer, layer), layer.weight
        >>> call_with(both, {"0.weight": torch.tensor([[3.0]])}, torch.ones(1, 1)), layer.weight is own
        (tensor([[9.]]), True)
    """
    named = {name: id(tensor) for name, tensor in _tensors_of(module)}
    given = {named[name]: tensor for name, tensor in tensors.items()}
    weights = {
        f"{path}.{name}".lstrip("."): given[id(tensor)]
        for path, part in module.named_modules()
        for name, tensor in _tensors_of(part, recurse=False)
        if id(tensor) in given
    }
    drop_caches_(module)
    try:
        return functional_call(module, weights, arguments, tie_weights=False)
    finally:
        drop_caches_(module)


def drop_caches_(module: nn.Module) -> None:
    """Make a module forget what it computed from its weights: timm's LeViT and its kin do so in ``train()``.

    The modes of all its parts stay as they are.
    """
    parts = list(module.modules())
    modes = [(part, part.training) for part in parts]
    try:
        for part in parts:
            if type(part).train is not nn.Module.train:
                part.train()
    finally:
        for part, training in modes:
            part.training = training  # not by `train()`, in which a module may do more than that


def _tensors_of(module: nn.Module, *, recurse: bool = True) -> list[tuple[str, Tensor]]:
    return [
        *module.named_parameters(recurse=recurse, remove_duplicate=False),
        *module.named_buffers(recurse=recurse, remove_duplicate=False),
    ]
