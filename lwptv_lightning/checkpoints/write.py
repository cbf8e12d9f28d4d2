"""Stream weights to safetensors, in one file or in shards; a killed run leaves no half file under a final name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import CheckpointError, TensorHeader
from lwptv_lightning.checkpoints.safetensors import SAFETENSORS_DTYPES

_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}


def require_safetensors_path(path: str | Path) -> None:
    """Raise unless a path ends in ``.safetensors``."""
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"the file to write must end in .safetensors, not {str(path)!r}.")


def write_safetensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> Path:
    """Write tensors to one file, under a temporary name first.

    Returns:
        The final path.
    """
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
    last, and what another run wrote for the same path is replaced.

    Args:
        path: The file.
        headers: Shape and dtype of all tensors.
        metadata: What the file says of itself.
        shard_size: The most bytes of a shard; one file by default.

    Attributes:
        final: What to open once the block is left.

    Raises:
        CheckpointError: A dtype that the format does not know.
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
        self._open: list[BinaryIO] = []
        self._place: dict[str, tuple[BinaryIO, int]] = {}
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._discard()

    def write(self, name: str, values: Tensor, start: int = 0) -> None:
        """Write some elements of a flattened tensor, from the element ``start`` on."""
        file, offset = self._place[name]
        file.seek(offset + start * values.dtype.itemsize)
        # Bytes, since numpy does not know every dtype.
        file.write(values.cpu().contiguous().view(torch.uint8).numpy().data)

    def _begin(self, number: int, names: list[str]) -> None:
        """Create a shard's file with its header, in which all places are fixed beforehand."""
        file = self._temporary(number).open("wb")
        self._open.append(file)
        entries: dict[str, object] = {"__metadata__": self._metadata}
        offsets, end = {}, 0
        # Wider elements first, so that each tensor begins at a multiple of its elements' size.
        for name in sorted(names, key=lambda name: -self._headers[name].dtype.itemsize):
            header = self._headers[name]
            offsets[name], end = end, end + header.nbytes
            entries[name] = {
                "dtype": _CODES[header.dtype],
                "shape": list(header.shape),
                "data_offsets": [offsets[name], end],
            }
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        self._place |= {name: (file, 8 + len(text) + offset) for name, offset in offsets.items()}

    def _finish(self) -> None:
        for file in self._open:
            file.close()
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
        for file in self._open:
            file.close()
        for number in range(len(self._shards) + 1):
            self._temporary(number).unlink(missing_ok=True)

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
