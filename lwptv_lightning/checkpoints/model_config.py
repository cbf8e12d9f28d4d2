"""`ModelConfig`: what a module says of how its library builds it, so that a folder of that library can be written."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lwptv_lightning.functional import plain_module

_OF_TRANSFORMERS = "transformers.modeling_utils"
"""Where transformers has the class that its models inherit; told by name, since importing it takes seconds."""

_USUAL_CLASSES = 2
"""How many transformers' configurations mean that do not say it."""


@dataclass(frozen=True)
class ModelConfig:
    """How a library builds a module.

    Attributes:
        library: ``"timm"`` or ``"transformers"``.
        config: What the library writes as ``config.json``.
        others: File name to what else it writes beside.
        problem: Why the library can say nothing; None where it can.
    """

    library: str
    config: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    problem: str | None = None

    @classmethod
    def of(cls, model: nn.Module) -> ModelConfig | None:
        """Return what a module of timm or transformers says; None for any other.

        Example:
            >>> import timm
            >>> said = ModelConfig.of(timm.create_model("vit_tiny_patch16_224", num_classes=3))
            >>> said.library, said.config["architecture"], said.config["num_classes"]
            ('timm', 'vit_tiny_patch16_224', 3)
            >>> ModelConfig.of(nn.Linear(1, 1)) is None
            True
        """
        model = plain_module(model)
        if any(each.__module__ == _OF_TRANSFORMERS for each in type(model).__mro__):
            return _of_transformers(model)
        about = getattr(model, "pretrained_cfg", None)
        if isinstance(about, Mapping) and isinstance(about.get("architecture"), str):
            return _of_timm(model)
        return None


@dataclass(frozen=True)
class StatedHead:
    """What a ``config.json`` beside weights says of their classifier.

    Attributes:
        paths: The module paths of timm's.
        classes: How many classes transformers' tells apart; None where it says nothing.
    """

    paths: tuple[str, ...] = ()
    classes: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> StatedHead:
        """Read a configuration of timm or transformers.

        Example:
            >>> StatedHead.of({"architecture": "resnet18", "pretrained_cfg": {"classifier": "fc"}}).paths
            ('fc',)
            >>> StatedHead.of({"architectures": ["ViTForImageClassification"], "id2label": {"0": "a"}}).classes
            1
        """
        if isinstance(config.get("architecture"), str):
            about = config.get("pretrained_cfg", config)
            paths = about.get("classifier") if isinstance(about, Mapping) else None
            given = [paths] if isinstance(paths, str) else paths if isinstance(paths, list) else []
            return cls(paths=tuple(path for path in given if isinstance(path, str)))
        kinds, labels = config.get("architectures"), config.get("id2label")
        if isinstance(kinds, list) and any(str(kind).endswith("Classification") for kind in kinds):
            return cls(classes=len(labels) if isinstance(labels, Mapping) else _USUAL_CLASSES)
        return cls()


def _of_timm(model: nn.Module) -> ModelConfig:
    from timm.models._hub import save_config_for_hf  # the part of timm's `save_for_hf` that writes no weights

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        try:
            save_config_for_hf(model, path)  # type: ignore[arg-type]  # earlier versions take no text
            return ModelConfig("timm", _with_size(json.loads(path.read_text(encoding="utf-8")), model))
        except Exception as error:  # timm says in many ways that a model was changed or holds what is no JSON
            return ModelConfig("timm", problem=f"{type(error).__name__}: {error}")


def _with_size(config: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return timm's configuration with the image size that a model has, which earlier versions leave out."""
    size, about = getattr(getattr(model, "patch_embed", None), "img_size", None), config["pretrained_cfg"]
    if "model_args" not in config and size is not None and about.get("fixed_input_size"):
        about["input_size"] = [about["input_size"][0], *size]
    return config


def _of_transformers(model: Any) -> ModelConfig:
    config = json.loads(model.config.to_json_string())
    config["architectures"] = [type(model).__name__]
    generation = getattr(model, "generation_config", None)
    others = {} if generation is None else {"generation_config.json": json.loads(generation.to_json_string())}
    return ModelConfig("transformers", config, others)
