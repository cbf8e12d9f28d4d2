"""Reads safetensors, in one file or in shards with an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{path}: weight_map must map tensor names to files.")
    shards = [path.parent / name for name in dict.fromkeys(weight_map.values())]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise CheckpointError(f"{path}: shards named in the index are missing: {', '.join(absent)}.")
    checkpoint = _from_safetensors(path, shards, "sharded safetensors")
    unmatched = set(weight_map).symmetric_difference(checkpoint.names)
    if unmatched:
        raise CheckpointError(f"{path}: index and shards disagree on {some_of(sorted(unmatched))}")
    return checkpoint


@dataclass(frozen=True)
class _Place:
    """Where a tensor stands in a file, in bytes from the file's beginning."""

    path: Path
    start: int
    stop: int


class _SafetensorsReader:
    """Reads from memory-mapped safetensors files, which are mapped again in another process.

    A mapped file is not open, so that shards may be more than files can be.
    """

    def __init__(self, places: Mapping[str, _Place], headers: Mapping[str, TensorHeader]) -> None:
        self._places = dict(places)
        self._headers = dict(headers)
        self._mapped: dict[Path, Tensor] = {}

    def read(self, name: str) -> Tensor:
        place, header = self._places[name], self._headers[name]
        if place.path not in self._mapped:
            size = place.path.stat().st_size
            storage: Any = torch.UntypedStorage.from_file(str(place.path), shared=False, nbytes=size)
            self._mapped[place.path] = torch.empty(0, dtype=torch.uint8).set_(storage)
        values = self._mapped[place.path][place.start : place.stop]
        if place.start % header.dtype.itemsize:
            values = values.clone()  # the format does not promise alignment, which a view needs
        return values.view(header.dtype).reshape(header.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {"_places": self._places, "_headers": self._headers, "_mapped": {}}


def _from_safetensors(source: Path, files: list[Path], format: str = "safetensors") -> Checkpoint:
    headers: dict[str, TensorHeader] = {}
    places: dict[str, _Place] = {}
    metadata: dict[str, str] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as handle:  # which checks the file
                metadata |= handle.metadata() or {}
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a readable safetensors file ({error}).") from error
        entries, begin = _entries(path)
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            if (code := entry["dtype"]) not in SAFETENSORS_DTYPES:
                raise CheckpointError(f"{path}: tensor {name!r} has the unsupported dtype {code}.")
            headers[name] = TensorHeader(tuple(entry["shape"]), SAFETENSORS_DTYPES[code])
            places[name] = _Place(path.absolute(), *(begin + offset for offset in entry["data_offsets"]))
    reader, folder = _SafetensorsReader(places, headers), source.absolute().parent
    return Checkpoint(str(source), headers, reader, metadata=metadata, folder=folder, format=format)


def _entries(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Read a header at once, tensor name to entry, and where the data begin: asking for names one by one takes long."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return entries, 8 + length
