"""A folder as ``timm.create_model("local-dir:...")`` and ``"hf-hub:..."`` read it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model
from torch import nn

from lwptv_lightning.checkpoints import TensorHeader
from lwptv_lightning.libraries.beside import CONFIG, configuration, processing_files
from lwptv_lightning.libraries.folder import FolderError, ModelFolder, Wanted, as_json, misfit

_LABELS = ("label_names", "label_descriptions", "labels", "label_offset")


def is_timms(config: Mapping[str, Any]) -> bool:
    """Tell whether a ``config.json`` is timm's.

    Example:
        >>> is_timms({"architecture": "resnet18", "num_classes": 10}), is_timms({"model_type": "bert"})
        (True, False)
    """
    return isinstance(config.get("architecture"), str)


def timm_folder(wanted: Wanted) -> ModelFolder:
    """Return the folder of a timm model, with a configuration of as many classes as are written.

    Raises:
        FolderError: There is no configuration of timm's, or its model has other tensors.
    """
    own = wanted.origin.model_config
    if own is not None and own.library != "timm":
        raise FolderError(f"the tensors are named as {own.library} names them; a timm folder needs a timm model=...")
    if own is not None and own.problem is not None:
        raise FolderError(f"timm cannot say how the given model is built ({own.problem}).")
    beside = configuration(wanted.origin, CONFIG)
    given = [beside] if own is None else [dict(own.config)]
    if own is not None and beside.get("architecture") == own.config["architecture"]:
        given.insert(0, beside)  # in which may stand more than a model knows, such as how its images were made
    if not is_timms(given[0]):
        raise FolderError(
            f"{wanted.place}: there is no config.json of timm's beside the base; give the timm model: model=..."
        )
    config = _fitting(given, wanted)
    return ModelFolder(library="timm", files={CONFIG: as_json(config), **processing_files(wanted.origin)})


def _fitting(given: Sequence[Mapping[str, Any]], wanted: Wanted) -> dict[str, Any]:
    """Return the first configuration whose model has the tensors, with their number of classes."""
    own = [_split(config) for config in given]
    problems = []
    for config in [each for before in own for each in (before, _with_classes(before, wanted))]:
        is_the_bases = config in own and wanted.is_as_stored
        if (is_the_bases and not is_model(config["architecture"])) or (problem := _problem(config, wanted)) is None:
            return config
        problems.append(f"{config['architecture']}: {problem}")
    raise FolderError(f"timm would load another model by its config.json, {problems[-1]}.")


def _split(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in two levels, as timm itself reads one of earlier versions."""
    own = deepcopy(dict(config))
    if "pretrained_cfg" in own:
        return own
    top: dict[str, Any] = {name: own.pop(name) for name in ("architecture", "num_features") if name in own}
    return {**top, "pretrained_cfg": own}


def _with_classes(config: dict[str, Any], wanted: Wanted) -> dict[str, Any]:
    """Return a configuration with the number of classes that the written classifier has, 0 where there is none."""
    about = config["pretrained_cfg"]
    paths = about.get("classifier") or ()
    paths = (paths,) if isinstance(paths, str) else tuple(paths)
    heads = [wanted.headers[f"{path}.weight"].shape for path in paths if f"{path}.weight" in wanted.headers]
    classes = heads[0][0] if heads else 0
    said = config.get("num_classes", about.get("num_classes"))
    if not paths or classes == said or (heads and len(heads[0]) != 2):
        return config
    config = deepcopy(config)
    for level in (config, config["pretrained_cfg"]):
        level["num_classes"] = classes
        for name in _LABELS:
            level.pop(name, None)
    if "num_classes" in config.get("model_args", {}):
        config["model_args"]["num_classes"] = classes
    return config


def _problem(config: Mapping[str, Any], wanted: Wanted) -> str | None:
    """Say how the model that timm builds by a configuration has other tensors; None where it has these."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_bytes(as_json(config))
        try:
            try:
                with torch.device("meta"):
                    model = timm.create_model(f"local-dir:{folder}")
            except (NotImplementedError, RuntimeError):  # some compute with values while they are built
                model = timm.create_model(f"local-dir:{folder}")
        except Exception as error:  # whatever a model makes of its arguments
            return f"it cannot be built ({type(error).__name__}: {error})"
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    problem = misfit(own, wanted.headers)
    return problem and misfit(own, _as_loaded(model, wanted.headers)) and problem


def _as_loaded(model: nn.Module, headers: Mapping[str, TensorHeader]) -> dict[str, TensorHeader]:
    """Return tensors as timm names them when it loads a file of an earlier version; as they are where it resamples."""
    converted = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    state = {name: torch.empty(each.shape, dtype=each.dtype, device="meta") for name, each in headers.items()}
    try:
        found = TensorHeader.of_all(state if converted is None else converted(state, model))
        is_resampled = any(name in headers and each.numel != headers[name].numel for name, each in found.items())
        return dict(headers) if is_resampled else found
    except Exception:  # it is written for files of its models, and these may be any
        return dict(headers)
