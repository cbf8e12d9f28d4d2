"""Which library's folder a merged model goes into: that of the base, or the one that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lwptv_lightning.checkpoints import Checkpoint, TensorHeader, fetch_beside, skeleton_of, some_of
from lwptv_lightning.libraries.beside import (
    CONFIG,
    GENERATION_CONFIG,
    OPEN_CLIP_CONFIG,
    PROCESSING,
    configuration,
    processing_files,
)
from lwptv_lightning.libraries.folder import FolderError, ModelFolder, Wanted
from lwptv_lightning.libraries.open_clip_folder import is_open_clips, open_clip_folder
from lwptv_lightning.libraries.timm_folder import is_timms, timm_folder
from lwptv_lightning.libraries.transformers_folder import is_transformers, transformers_folder
from lwptv_lightning.registry import require_kind, require_known

DISTRIBUTED = "dcp"
PLAIN = "safetensors"
_OF_THE_CACHE = (
    "The hub could not be asked: of the base's tokenizer and processor files, those in the cache were copied."
)


def plan_folder(
    origin: Checkpoint, headers: Mapping[str, TensorHeader], format: str | None = None, *, left_out: Sequence[str] = ()
) -> ModelFolder:
    """Decide what stands in a merged model's folder, before a tensor is made.

    Args:
        origin: The base.
        headers: The tensors that are written.
        format: One of `FORMATS`; by default what the base came as.
        left_out: The tensors of the base that are not written, those of a classifier that no task shares.

    Raises:
        UnknownNameError: There is no such format.
        FolderError: It cannot be made of this model.
    """
    require_format(format)
    wanted = Wanted(origin, headers, tuple(left_out))
    was_asked = origin.folder is None or fetch_beside(origin.folder, (*PROCESSING, GENERATION_CONFIG, "*.py"))
    kind = _kind_of(wanted) if format is None else format
    try:
        made = _MAKERS[kind](wanted)
        return made if was_asked else replace(made, notes=(*made.notes, _OF_THE_CACHE))
    except FolderError as error:
        other = _kind_of(wanted)
        nearest = f"format={other!r}, or {PLAIN!r}" if other not in (kind, PLAIN) else f"format={PLAIN!r}"
        is_left_out = bool(left_out) and kind == other
        kept = " keep_classifier=True writes the base's classifier, which is left out here." if is_left_out else ""
        raise FolderError(
            f"no {kind} folder can be made: {error} Possible: {nearest}, which has no config.{kept}"
        ) from error


def require_format(format: str | None) -> None:
    """Raise an error unless a format is one of `FORMATS`, or None."""
    require_kind("format", format, str | None, f"one of {', '.join(_MAKERS)}")
    if format is not None:
        require_known("format", format, _MAKERS)


def _kind_of(wanted: Wanted) -> str:
    """Return what a base came as: the module's library where one was given, else that of the files beside it."""
    if (own := wanted.origin.model_config) is not None and own.problem is None:
        return own.library
    if is_open_clips(configuration(wanted.origin, OPEN_CLIP_CONFIG), wanted):
        return "open_clip"
    config = configuration(wanted.origin, CONFIG)
    return "timm" if is_timms(config) else "transformers" if is_transformers(config) else PLAIN


def _plain_folder(wanted: Wanted) -> ModelFolder:
    return ModelFolder(library=PLAIN, files=processing_files(wanted.origin), in_shards=True)


def _distributed_folder(wanted: Wanted) -> ModelFolder:
    """Return the folder, with a note where the model's names are others than those of the base's file."""
    model = None if wanted.origin.model_config is not None else skeleton_of(wanted.origin)
    known = {*wanted.headers, *wanted.left_out}
    others = [] if model is None else [name for name in model.state_dict() if name not in known]
    about = f"Its names are those of the base's file; {type(model).__name__}.state_dict() has others: "
    return ModelFolder(library=DISTRIBUTED, notes=(about + some_of(others),) if others else ())


_MAKERS: dict[str, Callable[[Wanted], ModelFolder]] = {
    "timm": timm_folder,
    "transformers": transformers_folder,
    "open_clip": open_clip_folder,
    DISTRIBUTED: _distributed_folder,
    PLAIN: _plain_folder,
}
FORMATS = tuple(_MAKERS)
"""The kinds of folder that can be asked for."""
