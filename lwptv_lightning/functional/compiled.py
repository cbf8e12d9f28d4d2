"""A module and its tensors under the names they have without `torch.compile`, which puts ``_orig_mod`` into them."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def plain_name(name: str) -> str:
    """Return the name of a tensor, or the path of a module, without what `torch.compile` puts into it.

    Example:
        >>> plain_name("encoder._orig_mod.fc.weight"), plain_name("_orig_mod")
        ('encoder.fc.weight', '')
    """
    return re.sub(r"(^|\.)_orig_mod(?=\.|$)", "", name).removeprefix(".")


def plain_module(module: nn.Module) -> nn.Module:
    """Return what was compiled, where a module is the result of `torch.compile`, or else the module."""
    while (inner := module._modules.get("_orig_mod")) is not None:
        module = inner
    return module


def plain_state(module: nn.Module, *, keep_vars: bool = False) -> dict[str, Any]:
    """Return a module's state dict under the names that it has where nothing of it is compiled.

    Raises:
        ValueError: The module is a lazy one that has seen no batch.
    """
    if empty := [name for name, value in (*module.named_parameters(), *module.named_buffers()) if is_lazy(value)]:
        raise ValueError(
            f"{type(module).__name__} is not initialised: {empty[0]!r} has no shape before the first batch."
        )
    return {plain_name(name): value for name, value in module.state_dict(keep_vars=keep_vars).items()}


def uncompile_(module: nn.Module) -> nn.Module:
    """Put in place of every compiled submodule what was compiled, and return the outermost module likewise."""
    module = plain_module(module)
    for name, child in module._modules.items():
        if child is not None:
            module._modules[name] = uncompile_(child)
    return module


def keep_plain_names_(module: nn.Module) -> None:
    """Let a module's state dict have names without `torch.compile`'s, and let it load such as well as others."""
    module.register_state_dict_post_hook(_strip)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(_restore)  # type: ignore[no-untyped-call]


def _strip(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in list(state):
        value = state.pop(name)  # all are put back, so that the order stays
        state[prefix + plain_name(name.removeprefix(prefix)) if name.startswith(prefix) else name] = value


def _restore(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    names: dict[str, str] = {plain_name(name): name for name, _ in tensors}
    for key in [key for key in state if key.startswith(prefix)]:
        own = names.get(plain_name(key.removeprefix(prefix)))
        if own is not None and isinstance(state[key], Tensor):
            state[prefix + own] = state.pop(key)
