"""A folder as ``from_pretrained`` of transformers reads it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

import torch

from lwptv_lightning.checkpoints import TensorHeader
from lwptv_lightning.libraries.beside import (
    CONFIG,
    GENERATION_CONFIG,
    code_files,
    configuration,
    processing_files,
)
from lwptv_lightning.libraries.folder import FolderError, ModelFolder, Wanted, as_json

_DTYPES = ("dtype", "torch_dtype")
"""What transformers calls the dtype that it loads in, since 5 and before."""
_CLASSES = ("id2label", "label2id", "num_labels", "problem_type")


def is_transformers(config: Mapping[str, Any]) -> bool:
    """Tell whether a ``config.json`` is transformers'.

    Example:
        >>> is_transformers({"model_type": "bert"}), is_transformers({"architecture": "resnet18"})
        (True, False)
    """
    return isinstance(config.get("model_type"), str) or isinstance(config.get("architectures"), list)


def transformers_folder(wanted: Wanted) -> ModelFolder:
    """Return the folder of a transformers model, without a classifier where that is left out.

    Raises:
        FolderError: There is no configuration of transformers', or no class of it has these tensors.
    """
    own = wanted.origin.model_config
    if own is not None and own.library != "transformers":
        raise FolderError(
            f"the tensors are named as {own.library} names them; leave model=... out to keep the base's names."
        )
    config = configuration(wanted.origin, CONFIG)
    if own is not None and not _are_of_one_class(config, own.config):
        config = dict(own.config)
    if not is_transformers(config):
        raise FolderError(f"{wanted.place}: there is no config.json of transformers' beside the base.")
    others = {} if own is None else {name: as_json(content) for name, content in own.others.items()}
    if generation := configuration(wanted.origin, GENERATION_CONFIG):
        others[GENERATION_CONFIG] = as_json(generation)
    code = code_files(wanted.origin, config)
    notes = []
    if code:
        notes.append(f"Code of the base was copied, and not run: {', '.join(sorted(code))}.")
    config = _in_written_dtype(_without_quantization(config, wanted, notes), wanted.headers)
    if not wanted.is_as_stored:
        config = _fitting(config, wanted, notes)
    return ModelFolder(
        library="transformers",
        files={CONFIG: as_json(config), **others, **processing_files(wanted.origin), **code},
        in_shards=True,
        notes=tuple(notes),
    )


def _without_quantization(config: dict[str, Any], wanted: Wanted, notes: list[str]) -> dict[str, Any]:
    """Leave out how the base's weights were packed, where they are not any more."""
    is_packed = not wanted.origin.dequantized and dict(wanted.origin.stored_headers) == dict(wanted.headers)
    if "quantization_config" not in config or is_packed:
        return config
    notes.append("Its weights are plain numbers: the base's quantization_config is left out.")
    return {name: value for name, value in config.items() if name != "quantization_config"}


def _in_written_dtype(config: dict[str, Any], headers: Mapping[str, TensorHeader]) -> dict[str, Any]:
    """Say the dtype that is written, in which transformers loads: the widest of several."""
    floating = {header.dtype for header in headers.values() if header.dtype.is_floating_point}
    if not floating:
        return config
    dtype = str(max(floating, key=lambda each: (each.itemsize, str(each)))).removeprefix("torch.")
    config = deepcopy(config)
    for level in (config, *(value for value in config.values() if isinstance(value, dict))):
        level |= {name: dtype for name in _DTYPES if level.get(name) is not None}
    return config


class _Candidate(NamedTuple):
    """A class of transformers, the configuration of a model of it, and whether a file may lack what has no elements."""

    kind: Any
    config: Any
    written: dict[str, Any]
    without_empty: bool = False


def _fitting(config: dict[str, Any], wanted: Wanted, notes: list[str]) -> dict[str, Any]:
    """Return the configuration of the first model that lacks nothing that it did not lack before."""
    about = f"{wanted.place}: the config.json says {_class_of(config)}"
    try:
        import transformers
    except ImportError as error:
        raise FolderError(
            f"{about}, and what is written is not all of it; transformers must be installed to tell what would load it "
            "(the extra 'clip' has it)."
        ) from error
    try:
        before, _, beyond_before = _lacking(_own_class(transformers, config), wanted.origin.stored_headers)
    except Exception as error:  # whatever a model makes of a configuration
        raise FolderError(f"{about}, which cannot be built here ({type(error).__name__}: {error}).") from error
    before -= set(wanted.left_out)  # a base without a classifier lacks that of the given model, too
    problem = ""
    for candidate in _candidates(transformers, config, wanted):
        lacking, reshaped, further = _lacking(candidate, wanted.headers)
        if not lacking - before and not reshaped:
            if wanted.left_out:
                notes.append(f"Without its classifier it is a {candidate.kind.__name__}{_labels(candidate.written)}.")
            if beyond := sorted(further - beyond_before):
                notes.append(f"{candidate.kind.__name__} has no place for {', '.join(beyond)}.")
            return candidate.written
        problem = problem or _told(candidate, lacking - before, reshaped)
    raise FolderError(f"{about}; {problem}.")


def _candidates(transformers: Any, config: dict[str, Any], wanted: Wanted) -> Iterator[_Candidate]:
    """Yield what may hold a model: its own class and, without a classifier, one of no labels, and its encoder.

    Last comes its own class whose classifier is there and has no outputs: some have no encoder without a pooler.
    """
    own = _own_class(transformers, config)
    if not wanted.left_out:
        yield own
        return
    headless = {name: value for name, value in config.items() if name not in _CLASSES} | {
        "id2label": {},
        "label2id": {},
    }
    of_no_labels = _own_class(transformers, headless)
    yield of_no_labels
    encoder = transformers.MODEL_MAPPING.get(type(own.config), None)
    if isinstance(encoder, type):
        plain = {name: value for name, value in config.items() if name not in _CLASSES}
        plain["architectures"] = [encoder.__name__]
        yield _Candidate(encoder, type(own.config).from_dict(plain), plain)
    yield of_no_labels._replace(without_empty=True)


def _own_class(transformers: Any, config: dict[str, Any]) -> _Candidate:
    kind = getattr(transformers, _class_of(config))
    return _Candidate(kind, kind.config_class.from_dict(deepcopy(config)), config)


def _are_of_one_class(config: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(config.get(name) == other.get(name) for name in ("model_type", "architectures"))


def _class_of(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else f"model_type {config.get('model_type')}"


def _lacking(
    candidate: _Candidate, headers: Mapping[str, TensorHeader]
) -> tuple[set[str], dict[str, tuple[int, ...]], set[str]]:
    """Return what a model would not get, what it would have in another shape, and what it has no place for."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # a classifier of no labels is initialised, too
        model = candidate.kind(candidate.config)
    prefix = f"{model.base_model_prefix}."
    names: dict[int, list[str]] = {}
    own = model.state_dict(keep_vars=True)
    for name, value in own.items():
        names.setdefault(id(value), []).append(name)
    lacking, reshaped, used = set(), {}, set()
    for tied in names.values():
        ways = [way for name in tied for way in (name, prefix + name, name.removeprefix(prefix))]
        found = [way for way in ways if way in headers]
        used |= set(found)
        shape = tuple(own[tied[0]].shape)
        if not found and candidate.without_empty and not own[tied[0]].numel():
            continue  # there is nothing in it that could be random
        if not found:
            lacking.add(tied[0])
        elif headers[found[0]].shape != shape:
            reshaped[found[0]] = shape
    return lacking, reshaped, headers.keys() - used


def _told(candidate: _Candidate, lacking: set[str], reshaped: Mapping[str, tuple[int, ...]]) -> str:
    kind = candidate.kind.__name__
    if reshaped:
        name, shape = next(iter(reshaped.items()))
        return f"its {kind} would have {name!r} in shape {shape}"
    return f"its {kind} would have {min(lacking)!r} too, which would stay random"


def _labels(config: Mapping[str, Any]) -> str:
    return " of no labels" if config.get("id2label") == {} else ""
