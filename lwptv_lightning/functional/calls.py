"""Call a module with other tensors than its own, and leave it as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn


def call_with(module: nn.Module, tensors: Mapping[str, Tensor], *arguments: Any) -> Any:
    """Call a module with some parameters and buffers replaced, under all names that they have in it.

    `torch.func.functional_call` replaces a tensor once for each of its names and takes that back in the same order, so
    that a submodule which stands at two places keeps what it was given; and of a recurrent layer's weights it leaves
    those that the layer's kernels are called with. Here each is replaced once, wherever it is held. What the module
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
    return Replaceable(module).with_(tensors)(*arguments)


class Replaceable:
    """Where a module holds each of its tensors, found once, so that it can be called with many others in turn.

    Args:
        module: What to call; as long as this is used, it keeps the tensors that it has.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._named = dict(_tensors_of(module))
        self._places: dict[int, list[tuple[Any, Any]]] = {}
        for part in module.modules():
            for held in (part._parameters, part._buffers):
                self._note(held, held.items())
            if isinstance(part, nn.RNNBase):  # which its kernels are called with
                self._note(part._flat_weights, enumerate(part._flat_weights))
        self._is_caching = any(type(part).train is not nn.Module.train for part in module.modules())

    def _note(self, holder: Any, held: Iterable[tuple[Any, Tensor | None]]) -> None:
        for key, tensor in held:
            if tensor is not None:
                self._places.setdefault(id(tensor), []).append((holder, key))

    def with_(self, tensors: Mapping[str, Tensor], run: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """Return what calls the module as `call_with` does, or ``run``, which may call parts of it."""
        given = {id(self._named[name]): tensor for name, tensor in tensors.items()}
        replaced = [(*place, tensor) for each, tensor in given.items() for place in self._places.get(each, ())]

        def call(*arguments: Any) -> Any:
            before = [(holder, key, holder[key]) for holder, key, _ in replaced]
            self._drop_caches_()
            try:
                for holder, key, tensor in replaced:
                    holder[key] = tensor
                return (run or self.module)(*arguments)
            finally:
                for holder, key, tensor in before:
                    holder[key] = tensor
                self._drop_caches_()

        return call

    def _drop_caches_(self) -> None:
        if self._is_caching:
            drop_caches_(self.module)


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


def _tensors_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
