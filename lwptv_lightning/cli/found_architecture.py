"""Which model the checkpoints are of: as it is said, as the files say, or by their tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwptv_lightning.registry import ConfigurationError, nearest, shown

if TYPE_CHECKING:
    from lwptv_lightning.checkpoints import Checkpoint

_DATA = ("mean", "std", "crop_pct", "interpolation", "crop_mode")


@dataclass
class FoundModel:
    """What a configuration says of the architecture.

    Attributes:
        model: A name of timm, or a mapping with ``class_path``.
        arguments: Its ``model_arguments``.
        classifier: The module paths of its classifier.
        data: How its images are prepared, where that is not as the model says itself.
        others: Keys of the configuration besides, such as ``output_key``.
        why: How it was found, in words.
    """

    model: str | dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    classifier: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    why: str = ""

    def logits(self, checkpoint: Checkpoint) -> int | None:
        """Return how many classes a checkpoint's classifier tells apart."""
        for path in self.classifier:
            if (header := checkpoint.headers.get(f"{path}.weight")) is not None and header.shape:
                return header.shape[0]
        return None


def find_model(
    base: Path,
    checkpoint: Checkpoint,
    said: str | None,
    track: Callable[[Iterable[str], int], Iterable[str]] = lambda names, count: names,
) -> FoundModel:
    """Return the architecture of a base.

    Args:
        base: Its path.
        checkpoint: What is there.
        said: Timm's name of it, where that is said.
        track: Wraps what is gone through, such as in a bar of progress.

    Raises:
        ConfigurationError: None is found, or what is said does not exist.
    """
    import timm

    config = _configuration(base)
    if said is not None:
        if not timm.is_model(said.partition(".")[0]):
            raise ConfigurationError("--model", f"timm has no model {shown(said)}.{nearest(said, timm.list_models())}")
        return _of_timm(said, {}, checkpoint, {}, "as --model says")
    if isinstance(name := config.get("architecture"), str) and timm.is_model(name):
        arguments = dict(config.get("model_args") or {})
        return _of_timm(name, arguments, checkpoint, config.get("pretrained_cfg") or {}, "by its config.json")
    if isinstance(config.get("architectures"), list) and base.is_dir():
        return _of_transformers(base, config, checkpoint)
    return _by_tensors(base, checkpoint, track)


def _configuration(base: Path) -> dict[str, Any]:
    try:
        found = json.loads(((base if base.is_dir() else base.parent) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_timm(
    name: str, arguments: dict[str, Any], checkpoint: Checkpoint, about: Mapping[str, Any], why: str
) -> FoundModel:
    import timm
    from timm.data import resolve_data_config

    resolved: Any = resolve_data_config
    own = timm.get_pretrained_cfg(name)
    usual: dict[str, Any] = dict(vars(own)) if own is not None else {}
    paths = about.get("classifier") or usual.get("classifier") or ()
    found = FoundModel(name, arguments, (paths,) if isinstance(paths, str) else tuple(paths), why=why)
    if (classes := found.logits(checkpoint)) is not None:
        found.arguments = {"num_classes": classes} | arguments
    elif found.classifier:
        found.arguments = {"num_classes": 0} | arguments
    if about:
        first, second = (resolved(pretrained_cfg=dict(each)) for each in (about, usual))
        found.data = {key: _plain(first[key]) for key in _DATA if _plain(first[key]) != _plain(second[key])}
        if tuple(first["input_size"]) != tuple(second["input_size"]):
            found.data["image_size"] = list(first["input_size"][-2:])
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _of_transformers(base: Path, config: Mapping[str, Any], checkpoint: Checkpoint) -> FoundModel:
    if not any(str(each).endswith("ForImageClassification") for each in config["architectures"]):
        raise ConfigurationError(
            "--model",
            f"{str(base)!r} is a {config['architectures'][0]} of transformers, and init knows its models of images; "
            "write model: {class_path: ..., init_args: {...}} yourself (docs/configuration.md).",
        )
    path = "transformers.AutoModelForImageClassification.from_pretrained"
    model = {"class_path": path, "init_args": {"pretrained_model_name_or_path": str(base.resolve())}}
    paths = next((name.rpartition(".")[0] for name in checkpoint.names if name.endswith("classifier.weight")), "")
    found = FoundModel(model, {}, (paths,) if paths else (), why="by its config.json")
    found.others["output_key"] = "logits"
    found.data = _processor(base)
    return found


def _processor(base: Path) -> dict[str, Any]:
    """Return what transformers' image processor does, as the sets are prepared here."""
    try:
        about = json.loads((base / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    size = about.get("size")
    sides = (
        [size] * 2
        if isinstance(size, int)
        else [size.get("height"), size.get("width")]
        if isinstance(size, dict)
        else []
    )
    found = {"mean": about.get("image_mean"), "std": about.get("image_std")}
    if len(sides) == 2 and all(isinstance(side, int) for side in sides):
        found |= {"image_size": sides, "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"}
    return {key: value for key, value in found.items() if value is not None}


def _by_tensors(base: Path, checkpoint: Checkpoint, track: Callable[[Iterable[str], int], Iterable[str]]) -> FoundModel:
    from lwptv_lightning.checkpoints import stated_texts
    from lwptv_lightning.inspection import find_architecture

    found = find_architecture({name: header.shape for name, header in checkpoint.headers.items()}, track)
    if not found.names:
        near = f" The nearest is {found.nearest!r}: {found.misfit}." if found.nearest else ""
        raise ConfigurationError(
            "--model", f"no model of timm has the tensors of {str(base)!r}.{near} Say --model NAME."
        )
    stated = [*checkpoint.metadata.values(), *(stated_texts(base) if base.is_file() else ())]
    said = [name for name in found.names if name in stated or f"{name}." in str(stated)]
    called = [name for name in found.names if name in str(base)]
    name = max(called, key=len) if called else (said or found.names)[0]
    others = [each for each in found.names if each != name]
    why = "as the file says" if said else "by its file name" if called else "by its tensors"
    if others and not said:
        why += f"; {', '.join(others[:4])} {'has' if len(others) == 1 else 'have'} the same: --model says which"
    return _of_timm(name, dict(found.arguments), checkpoint, {}, why)
