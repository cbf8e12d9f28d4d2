"""How images become what a model takes: by its own data config of timm, and by what is said instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lwptv_lightning.functional import plain_module
from lwptv_lightning.registry import ConfigurationError, require_known, shown

_MODES = {1: "L", 3: "RGB"}
"""What an image is converted to, for a model of so many channels."""


@dataclass(frozen=True)
class ImageTransform:
    """From an image of PIL to what a model takes.

    Attributes:
        mode: The mode that an image is converted to first, such as ``"RGB"``.
        steps: What is done with it then; gives a tensor ``(C, H, W)``.
        config: What the steps were made of: ``input_size``, ``mean``, ``std``, ``crop_pct``, ``interpolation``...
        note: What was taken without the model saying so, in a sentence; empty where nothing was.
    """

    mode: str
    steps: Callable[[Any], Any]
    config: dict[str, Any]
    note: str = ""

    def __call__(self, image: Any) -> Any:
        """Return the tensor of an image; what is none of PIL's is taken as it is."""
        return self.steps(image.convert(self.mode)) if hasattr(image, "convert") else image


def image_transform(
    model: nn.Module,
    *,
    image_size: int | Sequence[int] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    crop_mode: str | None = None,
) -> ImageTransform:
    """Return how images are resized, cropped at the centre and normalised for a model.

    Timm's models say it themselves (`timm.data.resolve_model_data_config`), also how many channels they take and, where
    it was built in, of which size. What a model does not say is as usual for ImageNet, and ``note`` says so.

    Args:
        model: The architecture.
        image_size: Height and width in pixels, or both.
        mean: Of each channel, to subtract, in [0, 1].
        std: Of each channel, to divide by.
        crop_pct: The part of the resized image that is kept, in (0, 1].
        interpolation: ``"bicubic"``, ``"bilinear"``, ``"nearest"``, ...
        crop_mode: ``"center"``, ``"squash"`` or ``"border"``; see timm.

    Raises:
        ConfigurationError: A value is out of its range, or the model takes neither 1 nor 3 channels.

    Example:
        >>> import timm
        >>> image_transform(timm.create_model("resnet18", num_classes=2)).config["crop_pct"]
        0.95
    """
    from timm.data import create_transform, resolve_data_config

    _resolved: Any = resolve_data_config

    model = plain_module(model)
    about = dict(getattr(model, "pretrained_cfg", None) or {})
    channels = _channels(model, about)
    if channels not in _MODES:
        raise ConfigurationError(
            "data",
            f"{type(model).__name__} takes images of {channels} channels; image folders and named sets have 1 or 3. "
            "Give loaders of your own: data: {class_path: ...}.",
        )
    config = _resolved(pretrained_cfg=about, model=model)
    config["input_size"] = (channels, *(_built_in_size(model) or config["input_size"][-2:]))
    given = {"mean": mean, "std": std, "crop_pct": crop_pct, "interpolation": interpolation, "crop_mode": crop_mode}
    config |= {name: value for name, value in given.items() if value is not None}
    if image_size is not None:
        config["input_size"] = (channels, *_size(image_size))
    for name in ("mean", "std"):
        config[name] = _by_channel(name, config[name], channels, is_given=given[name] is not None)
    _require_in_range(config)
    said = {"image_size": image_size, "mean": mean, "std": std}
    lacking = [name for name, value in said.items() if value is None] if not about else []
    return ImageTransform(
        _MODES[channels], create_transform(**config, is_training=False), config, _note(model, config, lacking)
    )


def _note(model: nn.Module, config: dict[str, Any], lacking: list[str]) -> str:
    if not lacking:
        return ""
    _, height, width = config["input_size"]
    return (
        f"{type(model).__name__} does not say how its images are prepared: taken as usual for ImageNet, "
        f"{height}x{width} pixels of {config['crop_pct']:g} of the image, {config['interpolation']}, mean "
        f"{_short(config['mean'])}, std {_short(config['std'])}. "
        f"{', '.join(f'data.{name}' for name in lacking)} say otherwise."
    )


def _short(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _channels(model: nn.Module, about: dict[str, Any]) -> int:
    """Return how many channels a model takes: by its first convolution, or what it says of itself."""
    first = about.get("first_conv")
    path = first[0] if isinstance(first, list | tuple) and first else first
    modules = dict(model.named_modules())
    own = modules.get(path) if isinstance(path, str) else None
    convolutions = (
        [own] if isinstance(own, nn.Conv2d) else [each for each in modules.values() if isinstance(each, nn.Conv2d)]
    )
    if convolutions:
        return convolutions[0].in_channels
    return int(about.get("input_size", (3,))[0])


def _built_in_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the image size that a model was built for, which its general configuration may not know."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    size = getattr(getattr(model, "config", None), "image_size", None) if size is None else size  # of transformers
    size = (size, size) if isinstance(size, int) else size
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) and len(size) == 2 else None


def _size(value: int | Sequence[int]) -> tuple[int, int]:
    sizes = (value, value) if isinstance(value, int) else value
    whole = isinstance(sizes, list | tuple) and all(type(each) is int and each > 0 for each in sizes)
    if not whole or len(sizes) != 2:
        raise ConfigurationError("data.image_size", f"expected pixels, such as 224 or [224, 192], not {shown(value)}.")
    return sizes[0], sizes[1]


def _by_channel(name: str, value: Any, channels: int, *, is_given: bool) -> tuple[float, ...]:
    numbers = [value] if isinstance(value, int | float) and not isinstance(value, bool) else value
    is_list = isinstance(numbers, list | tuple)
    if not is_list or not all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers):
        raise ConfigurationError(f"data.{name}", f"expected a number for each channel, not {shown(value)}.")
    if len(numbers) == 1:
        return tuple(map(float, (*numbers,) * channels))
    if len(numbers) == channels:
        return tuple(map(float, numbers))
    if is_given:
        raise ConfigurationError(
            f"data.{name}", f"expected {channels} numbers, one for each channel, not {shown(value)}."
        )
    return (sum(numbers) / len(numbers),) * channels  # a grey image has the mean of the three


def _require_in_range(config: dict[str, Any]) -> None:
    crop = config["crop_pct"]
    if isinstance(crop, bool) or not isinstance(crop, int | float) or not 0 < crop <= 1:
        raise ConfigurationError("data.crop_pct", f"expected a number in (0, 1], not {shown(crop)}.")
    if min(config["std"]) <= 0:
        raise ConfigurationError("data.std", f"expected numbers above 0, not {shown(list(config['std']))}.")
    known = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
    try:
        require_known("interpolation", config["interpolation"], known)
        require_known("crop mode", config["crop_mode"], ("center", "squash", "border"))
    except ValueError as error:
        key = "interpolation" if "interpolation" in str(error) else "crop_mode"
        raise ConfigurationError(f"data.{key}", str(error)) from error
