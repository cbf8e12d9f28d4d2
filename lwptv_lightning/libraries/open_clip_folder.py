"""A folder as ``open_clip.create_model("local-dir:...")`` reads it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lwptv_lightning.libraries.beside import OPEN_CLIP_CONFIG, configuration, processing_files
from lwptv_lightning.libraries.folder import FolderError, ModelFolder, Wanted, as_json, misfit

_WEIGHTS = "open_clip_model.safetensors"


def is_open_clips(config: Mapping[str, Any], wanted: Wanted) -> bool:
    """Tell whether tensors are those of the model that an ``open_clip_config.json`` is of, and not of one beside it."""
    return isinstance(config.get("model_cfg"), dict) and any(name.startswith("visual.") for name in wanted.headers)


def open_clip_folder(wanted: Wanted) -> ModelFolder:
    """Return the folder of an open_clip model.

    Raises:
        FolderError: There is no configuration of open_clip's, or its model has other tensors.
    """
    config = configuration(wanted.origin, OPEN_CLIP_CONFIG)
    if not isinstance(config.get("model_cfg"), dict):
        raise FolderError(f"{wanted.place}: there is no {OPEN_CLIP_CONFIG} with a 'model_cfg' beside the base.")
    if not wanted.is_as_stored and (problem := _problem(config, wanted)) is not None:
        raise FolderError(f"open_clip would load another model by its {OPEN_CLIP_CONFIG}: {problem}.")
    return ModelFolder(
        library="open_clip",
        weights=_WEIGHTS,
        files={OPEN_CLIP_CONFIG: as_json(config), **processing_files(wanted.origin)},
    )


def _problem(config: Mapping[str, Any], wanted: Wanted) -> str | None:
    """Say how the model that open_clip builds by a configuration has other tensors; None where it has these."""
    try:
        import open_clip  # type: ignore[import-untyped]
    except ImportError:
        return "its names or shapes are not the base's, and open_clip is not here to say (the extra 'clip' has it)"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / OPEN_CLIP_CONFIG).write_bytes(as_json(config))
        try:
            with torch.device("meta"):
                model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, device="meta")
        except Exception as error:  # whatever a model makes of its arguments
            return f"it cannot be built ({type(error).__name__}: {error})"
    return misfit({name: tuple(value.shape) for name, value in model.state_dict().items()}, wanted.headers)
