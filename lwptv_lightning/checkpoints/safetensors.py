"""Reads safetensors, in one file or in shards with an index."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError, TensorHeader, some_of
from lwptv_lightning.checkpoints.mapped import MOST_DIMENSIONS, map_bytes, numbers_at
from lwptv_lightning.files import InputFile, beside
from lwptv_lightning.registry import parse_json

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's names of dtypes."""
_PACKED = ("F4", "F6_E2M3", "F6_E3M2")
"""Those in which numbers share a byte."""


def weight_map_of(index: InputFile) -> dict[str, str]:
    """Return what an index of shards says: tensor name to the name of a file that lies beside it."""
    try:
        content = parse_json(index.text(), "it")
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{index.path}: not an index of sharded {_kind_of(index.path)}: {error}") from error
    if not isinstance(content, dict) or "weight_map" not in content:
        raise CheckpointError(f"{index.path}: not an index of sharded {_kind_of(index.path)}: it has no 'weight_map'.")
    weight_map: dict[str, str] = content["weight_map"]
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index.path}: weight_map must map tensor names to files.")
    for shard in dict.fromkeys(weight_map.values()):
        beside(index.path.parent, shard, CheckpointError, origin=index.path)
    return weight_map


def _kind_of(index: Path) -> str:
    return "torch files" if index.name.endswith(".bin.index.json") else "safetensors"


def shards_of(index: InputFile, weight_map: Mapping[str, str]) -> dict[str, InputFile]:
    """Return the files that an index names, as they are now; a `CheckpointError` where one is missing."""
    files: dict[str, InputFile] = {}
    absent = []
    for shard in dict.fromkeys(weight_map.values()):
        place = index.path.parent / shard
        try:
            if os.path.isdir(place):  # which is no error where no file can have the name
                raise FileNotFoundError
            files[shard] = InputFile.at(place, CheckpointError)
        except FileNotFoundError:
            absent.append(shard)
    if absent:
        raise CheckpointError(f"{index.path}: shards named in the index are missing: {some_of(absent)}")
    return files


def require_agreement(path: Path, weight_map: Mapping[str, str], shards: Mapping[str, Collection[str]]) -> None:
    """Raise a `CheckpointError` unless shards, each with the names in it, hold what an index says, and no more."""
    # A tensor is read from the shard that the index names, though another one may hold one of its name.
    unmatched = {name for name, shard in weight_map.items() if name not in shards[shard]}
    unmatched |= {name for names in shards.values() for name in names} - set(weight_map)
    if unmatched:
        raise CheckpointError(f"{path}: index and shards disagree on {some_of(sorted(unmatched))}")


def _from_index(index: InputFile, weight_map: Mapping[str, str]) -> Checkpoint:
    files = shards_of(index, weight_map)
    parts = {name: _Part.of(file) for name, file in files.items()}
    require_agreement(index.path, weight_map, {name: part.places for name, part in parts.items()})
    named = [part.only([name for name in part.places if weight_map[name] == shard]) for shard, part in parts.items()]
    return _checkpoint(index.path, named, "sharded safetensors", (index, *files.values()))


def _from_safetensors(path: Path) -> Checkpoint:
    file = InputFile.at(path, CheckpointError)
    return _checkpoint(path, [_Part.of(file)], "safetensors", (file,))


def _checkpoint(source: Path, parts: Sequence[_Part], format: str, inputs: Sequence[InputFile]) -> Checkpoint:
    headers = {name: header for part in parts for name, header in part.headers.items()}
    places = {name: place for part in parts for name, place in part.places.items()}
    metadata = {key: value for part in parts for key, value in part.metadata.items()}
    reader, folder = _SafetensorsReader(places, headers), source.absolute().parent
    return Checkpoint(str(source), headers, reader, metadata=metadata, folder=folder, format=format, inputs=inputs)


@dataclass(frozen=True)
class _Place:
    """Where a tensor stands in a file, in bytes from the file's beginning."""

    file: InputFile
    start: int
    stop: int


@dataclass(frozen=True)
class _Part:
    """What one file's header says."""

    headers: Mapping[str, TensorHeader]
    places: Mapping[str, _Place]
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, file: InputFile) -> _Part:
        try:
            with safe_open(file.path, framework="pt") as handle:  # which checks the file
                metadata = handle.metadata() or {}
            entries, begin = _entries(file)
        except CheckpointError:
            raise
        except (SafetensorError, OSError, ValueError) as error:
            file.require_unchanged()
            raise CheckpointError(f"{file.path}: not a readable safetensors file ({error}).") from error
        headers: dict[str, TensorHeader] = {}
        places: dict[str, _Place] = {}
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            if (code := entry["dtype"]) not in SAFETENSORS_DTYPES:
                packed = ", packed numbers; dequantize it first" if code in _PACKED else ""
                raise CheckpointError(f"{file.path}: tensor {name!r} has the unsupported dtype {code}{packed}.")
            if len(entry["shape"]) > MOST_DIMENSIONS:
                raise CheckpointError(f"{file.path}: tensor {name!r} has more than {MOST_DIMENSIONS} dimensions.")
            headers[name] = TensorHeader(tuple(entry["shape"]), SAFETENSORS_DTYPES[code])
            places[name] = _Place(file, *(begin + offset for offset in entry["data_offsets"]))
        return cls(headers, places, metadata)

    def only(self, names: Sequence[str]) -> _Part:
        """Return some of the tensors."""
        headers, places = {name: self.headers[name] for name in names}, {name: self.places[name] for name in names}
        return _Part(headers, places, self.metadata)


class _SafetensorsReader:
    """Reads from memory-mapped safetensors files, which are mapped again in another process."""

    def __init__(self, places: Mapping[str, _Place], headers: Mapping[str, TensorHeader]) -> None:
        self._places = dict(places)
        self._headers = dict(headers)
        self._mapped: dict[Path, Tensor] = {}
        self._views: dict[str, Tensor] = {}

    def read(self, name: str) -> Tensor:
        place = self._places[name]
        place.file.require_unchanged()
        if (known := self._views.get(name)) is not None:
            return known
        if place.file.path not in self._mapped:
            self._mapped[place.file.path] = map_bytes(place.file)
        data, header = self._mapped[place.file.path], self._headers[name]
        tensor = numbers_at(data, slice(place.start, place.stop), header.dtype).reshape(header.shape)
        if tensor.data_ptr() == data.data_ptr() + place.start:  # one that stands askew is copied, and takes memory
            self._views[name] = tensor
        return tensor

    def __getstate__(self) -> dict[str, Any]:
        return {"_places": self._places, "_headers": self._headers, "_mapped": {}, "_views": {}}


def _entries(file: InputFile) -> tuple[dict[str, dict[str, Any]], int]:
    """Read a header at once, tensor name to entry, and where the data begin: asking for names one by one takes long."""
    with file.open() as opened:
        length = int.from_bytes(opened.read(8), "little")
        entries: dict[str, dict[str, Any]] = parse_json(opened.read(length), "the header")
    entries.pop("__metadata__", None)
    return entries, 8 + length
