"""Digests of plain values, tensors and modules, by which it is known whether two are the same."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lwptv_lightning.functional import plain_name

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, Path)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def digest_of(*values: Any) -> str:
    """Return 64 hexadecimal digits that differ for values that differ.

    Args:
        values: Numbers, texts, tensors, modules, dataclasses, arrays, and mappings and sequences of such; the order of
            a mapping does not count.

    Raises:
        TypeError: It cannot be told of a value whether another one is the same.

    Example:
        >>> digest_of({"a": 1, "b": torch.ones(2)}) == digest_of({"b": torch.ones(2), "a": 1})
        True
        >>> digest_of(torch.ones(2)) == digest_of(torch.ones(1, 2)), digest_of(1) == digest_of(1.0)
        (False, False)
    """
    digest = hashlib.sha256()
    _add(digest, values)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if value is None or isinstance(
        value, bool | int | float | complex | str | bytes | torch.dtype | torch.device | Path
    ):
        _add_bytes(digest, type(value).__name__, repr(value).encode())
    elif isinstance(value, Tensor):
        _add_tensor(digest, value)
    elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        _add_bytes(digest, f"array {value.dtype} {value.shape}", np.ascontiguousarray(value).tobytes())
    elif isinstance(value, nn.Module):
        _add_module(digest, value)
    elif isinstance(value, Mapping) or (hasattr(value, "keys") and hasattr(value, "__getitem__")):
        # A mapping's keys may be of several kinds.
        parts = sorted((digest_of(key), key) for key in value.keys())  # noqa: SIM118
        _add_bytes(digest, "mapping", b"%d" % len(parts))
        for _, key in parts:
            _add(digest, key)
            _add(digest, value[key])
    elif is_dataclass(value) and not isinstance(value, type):
        _add_bytes(digest, type(value).__name__, b"")
        for field in fields(value):
            _add(digest, [field.name, getattr(value, field.name)])
    elif isinstance(value, Set):
        _add_bytes(digest, "set", "".join(sorted(map(digest_of, value))).encode())
    elif isinstance(value, Sequence):
        _add_bytes(digest, "sequence", b"%d" % len(value))
        for item in value:
            _add(digest, item)
    else:
        raise TypeError(f"it cannot be told of a {type(value).__name__} whether another one is the same.")


def _add_tensor(digest: Any, value: Tensor) -> None:
    whole = getattr(value, "full_tensor", lambda: value)().detach()
    kind = f"tensor {whole.dtype} {tuple(whole.shape)}"
    if whole.is_meta:
        _add_bytes(digest, f"{kind} meta", b"")
        return
    flat = whole.cpu().contiguous().reshape(-1)
    _add_bytes(digest, kind, flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def _add_module(digest: Any, module: nn.Module) -> None:
    """Add what a module says of itself, and all its tensors."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    _add(digest, [architecture_of(module), {plain_name(name): tensor for name, tensor in tensors}])


def architecture_of(module: nn.Module) -> str:
    """Return what a module says of itself, such as its parts and their sizes, and its settings; no private ones.

    It is the same in each process.

    Example:
        >>> architecture_of(nn.Linear(1, 2)).partition(" with ")[0]
        'torch.nn.modules.linear.Linear Linear(in_features=1, out_features=2, bias=True)'
    """
    told = {plain_name(path): settings_of(part) for path, part in module.named_modules()}
    # Hooks change what a part makes of data; of code no more than its name is known.
    hooks = {
        plain_name(path): [
            _name_of(hook) for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values())
        ]
        for path, part in module.named_modules()
    }
    described = f"{type(module).__module__}.{type(module).__qualname__} {_ADDRESS.sub('', repr(module))}"
    return f"{described} with {digest_of(told, hooks)}"


def settings_of(module: nn.Module, aside: Container[str] = ("training",)) -> dict[str, Any]:
    """Return a module's public attributes that are plain: a temperature, or a mean that is no buffer.

    A whole number counts where the module was made with one of its name; others may count calls.

    Args:
        module: The module, without its parts.
        aside: Names to leave out.

    Example:
        >>> settings_of(nn.LayerNorm(2))
        {'normalized_shape': (2,), 'eps': 1e-05, 'elementwise_affine': True}
    """
    made_with = inspect.signature(type(module).__init__).parameters
    return {
        name: value
        for name, value in vars(module).items()
        if not (name.startswith("_") or name in aside)
        and _is_setting(value)
        and (type(value) is not int or name in made_with)
    }


def _is_setting(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_setting, value))
    return value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | Tensor)


def _name_of(hook: Any) -> str:
    return f"{getattr(hook, '__module__', '')}.{getattr(hook, '__qualname__', type(hook).__qualname__)}"


def _add_bytes(digest: Any, kind: str, data: Any) -> None:
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    digest.update(f"{kind} {size}\n".encode("utf-8", "surrogatepass"))
    digest.update(data)
