"""Reads and writes safetensors, in one file or in shards with an index.

Weights are streamed to the file, and a killed run leaves no half file under a final name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError, TensorHeader, some_of
from lwptv_lightning.registry import require_kind, shown

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
_OPEN_AT_ONCE = 16
"""Shards that are open while they are written: a system allows only so many files."""
_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}


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


def require_safetensors_path(path: str | Path) -> None:
    """Raise unless a path ends in ``.safetensors``."""
    require_kind("the file to write", path, str | PathLike, "a path that ends in .safetensors")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"the file to write must end in .safetensors, not {shown(str(path))}.")


def write_safetensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> Path:
    """Write tensors to one file, under a temporary name first, and return the final path."""
    with SafetensorsWriter(path, TensorHeader.of_all(tensors), metadata) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor.detach().reshape(-1))
    return writer.final


def index_of(path: str | Path) -> Path:
    """Return where the index of shards stands that are written for a path."""
    return Path(f"{path}.index.json")


class SafetensorsWriter:
    """Writes tensors to their places in one or several files, in any order and piece by piece.

    The files have temporary names until the block is left without an error; then they get their final ones, the index
    last, and what another run wrote for the same path is replaced. A shard has ``shard_size`` bytes at most; without
    this, there is one file. ``final`` is what to open once the block is left.
    """

    def __init__(
        self,
        path: str | Path,
        headers: Mapping[str, TensorHeader],
        metadata: Mapping[str, str],
        shard_size: int | None = None,
    ) -> None:
        for name, header in headers.items():
            if header.dtype not in _CODES:
                raise CheckpointError(f"{name!r} is {header.dtype}, which safetensors files cannot hold.")
        self._path = Path(path)
        self._headers = headers
        self._metadata = dict(metadata)
        self._shards = _divide(headers, shard_size)
        self._open: dict[int, BinaryIO] = {}
        self._place: dict[str, tuple[int, int]] = {}
        self.final = self._path if len(self._shards) == 1 else index_of(self._path)

    def __enter__(self) -> SafetensorsWriter:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            for number, names in enumerate(self._shards):
                self._begin(number, names)
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._discard()

    def write(self, name: str, values: Tensor, start: int = 0) -> None:
        """Write some elements of a flattened tensor, from the element ``start`` on."""
        number, offset = self._place[name]
        file = self._file(number)
        file.seek(offset + start * values.dtype.itemsize)
        # Bytes, since numpy does not know every dtype.
        file.write(values.cpu().contiguous().view(torch.uint8).numpy().data)

    def _begin(self, number: int, names: list[str]) -> None:
        """Create a shard's file with its header, in which all places are fixed beforehand."""
        self._temporary(number).write_bytes(b"")
        file = self._file(number)
        entries: dict[str, object] = {"__metadata__": self._metadata}
        offsets, end = {}, 0
        # Wider elements first, so that each tensor begins at a multiple of its elements' size.
        for name in sorted(names, key=lambda name: -self._headers[name].dtype.itemsize):
            header = self._headers[name]
            offsets[name], end = end, end + header.nbytes
            place = [offsets[name], end]
            entries[name] = {"dtype": _CODES[header.dtype], "shape": list(header.shape), "data_offsets": place}
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        self._place |= {name: (number, 8 + len(text) + offset) for name, offset in offsets.items()}

    def _file(self, number: int) -> BinaryIO:
        """Return a shard's file; of several open ones, the one opened first is closed where they become too many."""
        if number not in self._open:
            if len(self._open) >= _OPEN_AT_ONCE:
                self._open.pop(next(iter(self._open))).close()
            self._open[number] = self._temporary(number).open("r+b")
        return self._open[number]

    def _finish(self) -> None:
        self._close()
        names = [self._path.name]
        if len(self._shards) > 1:
            count = len(self._shards)
            names = [f"{self._path.stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
        for number, name in enumerate(names):
            self._temporary(number).replace(self._path.with_name(name))
        index = index_of(self._path)
        if len(self._shards) == 1:
            index.unlink(missing_ok=True)
            return
        weight_map = {name: file for file, shard in zip(names, self._shards, strict=True) for name in shard}
        total = sum(header.nbytes for header in self._headers.values())
        temporary = self._temporary(len(names))
        temporary.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))
        temporary.replace(index)
        self._path.unlink(missing_ok=True)

    def _discard(self) -> None:
        self._close()
        for number in range(len(self._shards) + 1):
            self._temporary(number).unlink(missing_ok=True)

    def _close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def _temporary(self, number: int) -> Path:
        return self._path.with_name(f".{self._path.name}.{os.getpid()}.{number}.tmp")


def _divide(headers: Mapping[str, TensorHeader], shard_size: int | None) -> list[list[str]]:
    """Divide tensors, in order, into shards; a tensor larger than a shard has one to itself."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, header in headers.items():
        if shard_size is not None and shards[-1] and filled + header.nbytes > shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += header.nbytes
    return shards
