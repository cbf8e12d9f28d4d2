"""Reads files of ``torch.save`` and state dicts, wherever in them the weights stand; pickled code is never run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError, FunctionReader, TensorHeader, some_of
from lwptv_lightning.checkpoints.plain import plain_tensors
from lwptv_lightning.checkpoints.rebuilt import ForeignCodeError, Named, Opaque, unmade_error
from lwptv_lightning.checkpoints.torch_storage import read_torch_file
from lwptv_lightning.checkpoints.training import Weights, weights_of
from lwptv_lightning.files import InputFile

LIGHTNING = "Lightning"
"""The format of what Lightning wrote, whose names carry the prefix of an attribute."""
_STATED = ("hyper_parameters", "arch", "architecture", "args", "config")
"""Where training code says what it trains."""
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
            weights = weights_of(_load(self._file), str(self._file.path), self._ema)
            self._tensors = _tensors_of(weights, self._file)
        return self._tensors[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"_file": self._file, "_ema": self._ema, "_tensors": None}


def _from_state_dict(state: Mapping[str, Any], source: str, ema: bool | None) -> Checkpoint:
    weights = weights_of(state, source, ema)
    tensors = {name: value.cpu().clone() for name, value in _tensors_of(weights).items()}
    reader = FunctionReader(tensors.__getitem__)
    return weights.taken_by(Checkpoint(source, TensorHeader.of_all(tensors), reader))


def _from_torch_file(path: Path, ema: bool | None) -> Checkpoint:
    file = InputFile.at(path, CheckpointError)
    content = _load(file)
    weights = weights_of(content, str(path), ema)
    tensors = _tensors_of(weights, file)
    format = LIGHTNING if "pytorch-lightning_version" in content else "torch"
    checkpoint = Checkpoint(
        str(path),
        TensorHeader.of_all(tensors),
        _TorchFileReader(file, ema, tensors),
        folder=file.path.parent,
        format=format,
        inputs=(file,),
    )
    return weights.taken_by(checkpoint)


def stated_texts(path: Path) -> tuple[str, ...]:
    """Return the texts in the hyper-parameters that training code keeps beside the weights, such as a model's name.

    Args:
        path: A file; one of another kind has none.
    """
    try:
        content = _load(InputFile.at(path, CheckpointError))
    except (OSError, ValueError):
        return ()
    return tuple(text for key in _STATED if key in content for text in _texts(content[key]))


def _texts(value: Any, depth: int = 4) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping) and depth:
        for inner in value.values():
            yield from _texts(inner, depth - 1)


def _load(file: InputFile) -> Mapping[str, Any]:
    try:
        content = read_torch_file(file)
    except CheckpointError:
        raise
    except ForeignCodeError as error:
        raise unmade_error(str(file.path), str(error)) from error
    except Exception as error:  # a damaged file makes a reader fail in any way whatever
        reason = (str(error).strip().splitlines() or ["damaged"])[0]
        raise CheckpointError(
            f"{file.path}: not a readable checkpoint of torch.save ({type(error).__name__}: {reason})."
        ) from error
    if isinstance(content, Opaque | Named):
        raise unmade_error(str(file.path), content.what if isinstance(content, Opaque) else content.name)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file.path}: holds a {type(content).__name__}, expected a state dict.")
    return content


def _tensors_of(weights: Weights, file: InputFile | None = None) -> dict[str, Tensor]:
    """Return the tensors of a state dict."""
    content, source, _ = weights
    entries = {name: value for name, value in content.items() if not str(name).endswith("_extra_state")}
    strangers = [name for name, value in entries.items() if not isinstance(value, Tensor)]
    if strangers and all(isinstance(content[name], Opaque) for name in strangers):
        raise unmade_error(source, content[strangers[0]].what, strangers)
    if isinstance(content.get("shadow_params"), list):
        raise CheckpointError(
            f"{source}: averages in a list, without the names of their tensors, as torch_ema and diffusers keep them; "
            "copy them into the model, by copy_to(model.parameters()), and store its state dict."
        )
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
