"""Reads safetensors, in one file or in shards with an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError, TensorHeader, some_of

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's names of dtypes."""


def _from_index(path: Path) -> Checkpoint:
    try:
        weight_map: dict[str, str] = json.loads(path.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not an index of sharded safetensors ({error!r}).") from error
    shards = [path.parent / name for name in dict.fromkeys(weight_map.values())]
    absent = [shard.name for shard in shards if not shard.exists()]
    if absent:
        raise CheckpointError(f"{path}: shards named in the index are missing: {', '.join(absent)}.")
    checkpoint = _from_safetensors(path, shards, "sharded safetensors")
    unmatched = set(weight_map).symmetric_difference(checkpoint.names)
    if unmatched:
        raise CheckpointError(f"{path}: index and shards disagree on {some_of(sorted(unmatched))}")
    return checkpoint


class _SafetensorsReader:
    """Reads from memory-mapped safetensors files, which are opened again in another process."""

    def __init__(self, file_of: Mapping[str, Path]) -> None:
        self._file_of = dict(file_of)
        self._handles: dict[Path, Any] = {}

    def read(self, name: str) -> Tensor:
        path = self._file_of[name]
        if path not in self._handles:
            self._handles[path] = safe_open(path, framework="pt")
        tensor: Tensor = self._handles[path].get_tensor(name)
        return tensor

    def __getstate__(self) -> dict[str, Any]:
        return {"_file_of": self._file_of, "_handles": {}}


def _from_safetensors(source: Path, files: list[Path], format: str = "safetensors") -> Checkpoint:
    headers: dict[str, TensorHeader] = {}
    file_of: dict[str, Path] = {}
    metadata: dict[str, str] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as handle:
                metadata |= handle.metadata() or {}
                for name in handle.offset_keys():
                    view = handle.get_slice(name)
                    headers[name] = TensorHeader(tuple(view.get_shape()), _dtype(path, name, view.get_dtype()))
                    file_of[name] = path.absolute()
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a readable safetensors file ({error}).") from error
    reader, folder = _SafetensorsReader(file_of), source.absolute().parent
    return Checkpoint(str(source), headers, reader, metadata=metadata, folder=folder, format=format)


def _dtype(path: Path, name: str, code: str) -> torch.dtype:
    if code not in SAFETENSORS_DTYPES:
        raise CheckpointError(f"{path}: tensor {name!r} has the unsupported dtype {code}.")
    return SAFETENSORS_DTYPES[code]
