"""Reads files of ``torch.save`` and state dicts, wherever in them the weights stand; pickled code is never run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError, FunctionReader, TensorHeader, some_of
from lwptv_lightning.checkpoints.plain import plain_tensors
from lwptv_lightning.checkpoints.rebuilt import ForeignCodeError, Named, Opaque
from lwptv_lightning.checkpoints.torch_storage import read_torch_file
from lwptv_lightning.files import InputFile
from lwptv_lightning.registry import shown

LIGHTNING = "Lightning"
"""The format of what Lightning wrote, whose names carry the prefix of an attribute."""
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Where training code keeps averaged weights beside the last ones; timm's comes first."""
_DEEPEST = 8
"""How many mappings may lie in one another around the weights."""
_LAST_BESIDE_AVERAGED = "current_model_state"
"""Where Lightning's WeightAveraging keeps the last weights, when it puts the averaged ones into ``state_dict``."""
_MOST_EXPANDED = 16 << 20
"""Bytes beyond a file's own that tensors of it may take which repeat stored numbers, such as an expanded mask."""
_MOST_USES = 64
"""How many times a file's bytes its tensors may take, where several are stored as one."""


class _TorchFileReader:
    """Reads from a mapped ``torch.save`` file, which is loaded again by path in another process."""

    def __init__(self, file: InputFile, ema: bool | None, tensors: Mapping[str, Tensor]) -> None:
        self._file = file
        self._ema = ema
        self._tensors: dict[str, Tensor] | None = dict(tensors)

    def read(self, name: str) -> Tensor:
        self._file.require_unchanged()
        if self._tensors is None:
            self._tensors = _tensors_of(_load(self._file), str(self._file.path), self._ema, self._file)
        return self._tensors[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"_file": self._file, "_ema": self._ema, "_tensors": None}


def _from_state_dict(state: Mapping[str, Any], source: str, ema: bool | None) -> Checkpoint:
    tensors = {name: value.cpu().clone() for name, value in _tensors_of(state, source, ema).items()}
    return Checkpoint(source, TensorHeader.of_all(tensors), FunctionReader(tensors.__getitem__))


def _from_torch_file(path: Path, ema: bool | None) -> Checkpoint:
    file = InputFile.at(path, CheckpointError)
    content = _load(file)
    tensors = _tensors_of(content, str(path), ema, file)
    format = LIGHTNING if "pytorch-lightning_version" in content else "torch"
    return Checkpoint(
        str(path),
        TensorHeader.of_all(tensors),
        _TorchFileReader(file, ema, tensors),
        folder=file.path.parent,
        format=format,
        inputs=(file,),
    )


def _load(file: InputFile) -> Mapping[str, Any]:
    try:
        content = read_torch_file(file)
    except CheckpointError:
        raise
    except ForeignCodeError as error:
        raise _unmade(str(file.path), str(error)) from error
    except Exception as error:  # a damaged file makes a reader fail in any way whatever
        reason = (str(error).strip().splitlines() or ["damaged"])[0]
        raise CheckpointError(
            f"{file.path}: not a readable checkpoint of torch.save ({type(error).__name__}: {reason})."
        ) from error
    if isinstance(content, Opaque | Named):
        raise _unmade(str(file.path), content.what if isinstance(content, Opaque) else content.name)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file.path}: holds a {type(content).__name__}, expected a state dict.")
    return content


def _unmade(source: str, what: str, names: Sequence[object] = ()) -> CheckpointError:
    """Return the refusal of a file whose weights stand in objects of other classes than tensors and mappings."""
    where = f" in the place of tensors ({some_of(names, 3).removesuffix('.')})" if names else ""
    return CheckpointError(
        f"{source}: holds pickled Python objects{where}, which are never unpickled here because that can run code; the "
        f"first is {shown(what)}. Where you trust the file, load it yourself and store the weights alone: "
        "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')."
    )


def _tensors_of(
    content: Mapping[str, Any], source: str, ema: bool | None = None, file: InputFile | None = None
) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of the one wrapped inside a training checkpoint."""
    content, source = _unwrapped(content, source, ema)
    entries = {name: value for name, value in content.items() if not str(name).endswith("_extra_state")}
    strangers = [name for name, value in entries.items() if not isinstance(value, Tensor)]
    if strangers and all(isinstance(content[name], Opaque) for name in strangers):
        raise _unmade(source, content[strangers[0]].what, strangers)
    if strangers:
        raise CheckpointError(f"{source}: expected a state dict of tensors, but these are none: {some_of(strangers)}")
    if unnamed := [name for name in entries if not isinstance(name, str)]:
        raise CheckpointError(f"{source}: tensors must have texts as names, not {some_of(map(repr, unnamed))}")
    if file is not None:
        _require_bounded(entries, file)
    return plain_tensors(entries, source)


def _require_bounded(tensors: Mapping[str, Tensor], file: InputFile) -> None:
    """Raise a `CheckpointError` where a file's tensors are larger by far than what is stored of them."""
    expanded, used = 0, 0
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            continue
        stored = 1 + sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
        expanded += max(tensor.numel() - stored, 0) * tensor.itemsize
        used += tensor.nbytes
        if expanded > file.size + _MOST_EXPANDED or used > _MOST_USES * file.size + _MOST_EXPANDED:
            raise CheckpointError(
                f"{file.path}: {name!r} of shape {tuple(tensor.shape)} repeats stored numbers, so that the tensors "
                f"would take far more memory than the {file.size} bytes of the file; store the numbers themselves, by "
                "contiguous()."
            )


def _unwrapped(content: Mapping[str, Any], source: str, ema: bool | None) -> tuple[Mapping[str, Any], str]:
    """Return the innermost of mappings that hold one another as a training checkpoint its weights, and its name."""
    keys = _entries(content, source, ema)
    for _ in range(_DEEPEST):
        key = next((key for key in keys if isinstance(content.get(key), Mapping)), None)
        if key is None:
            if unmade := next((key for key in keys if isinstance(content.get(key), Opaque)), None):
                raise _unmade(source, content[unmade].what, [unmade])
            return content, source
        content, source = content[key], f"{source}[{key!r}]"
        keys = _entries(content, source, None)
    raise CheckpointError(f"{source}: state dicts in one another without an end; expected tensors in one of them.")


def _entries(content: Mapping[str, Any], source: str, ema: bool | None) -> tuple[str, ...]:
    """Return where a training checkpoint may hold the wanted weights, most likely first."""
    main_is_averaged = _LAST_BESIDE_AVERAGED in content
    if ema and not main_is_averaged:
        averaged = tuple(key for key in _AVERAGED if isinstance(content.get(key), Mapping))
        if not averaged:
            raise _no_averaged_weights(source)
        return averaged
    return (_LAST_BESIDE_AVERAGED, *_WRAPPERS) if ema is False and main_is_averaged else _WRAPPERS


def _no_averaged_weights(source: object) -> CheckpointError:
    return CheckpointError(
        f"{source}: no averaged (EMA) weights; expected Lightning's WeightAveraging or one of {', '.join(_AVERAGED)}."
    )
