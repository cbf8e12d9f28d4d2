"""Put merged weights into a module, in place, and take them out again bit-exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lwptv_lightning.checkpoints import some_of
from lwptv_lightning.registry import nearest


def install_(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors over the parameters and buffers of the same names.

    The parameters stay the objects they are, so optimisers and tied weights keep working. Everything is checked
    before the first tensor is copied.

    Args:
        module: What to write to. Tensors it has beyond those given stay as they are.
        tensors: Name in ``module.state_dict()`` to new value; converted to the parameter's device and dtype.

    Raises:
        ValueError: The module has no tensor of a name, or one of another shape.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> install_(layer, {"bias": torch.tensor([2.0])})
        >>> layer.bias.item()
        2.0
    """
    own = module.state_dict()
    absent = [name for name in tensors if name not in own]
    if absent:
        raise ValueError(
            f"{type(module).__name__} has no tensor {some_of(absent)}{nearest(absent[0], own)} "
            "Expected a module of the architecture that the checkpoints are of."
        )
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise ValueError(
                f"{type(module).__name__}: {name!r} has shape {tuple(own[name].shape)}, the weights to install "
                f"have {tuple(tensor.shape)}."
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    _drop_caches(module)


def _drop_caches(module: nn.Module) -> None:
    """Make a module forget what it computed from its old weights: timm's LeViT and its kin do so in ``train()``."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.train()
    for submodule, training in modes:
        submodule.training = training


def snapshot(module: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of a module's tensors, from which `install_` restores it bit-exactly.

    Args:
        module: What to copy from.
        names: Names in ``module.state_dict()``.

    Returns:
        Name to copy, on the tensor's device.
    """
    own = module.state_dict()
    # Tensors made in inference mode could not be used in training afterwards.
    with torch.inference_mode(False), torch.no_grad():
        return {name: own[name].clone() for name in names if name in own}
