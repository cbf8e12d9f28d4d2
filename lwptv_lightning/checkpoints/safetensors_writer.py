"""Writes safetensors, in one file or in shards with an index, as the tensors are made."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import CheckpointError, TensorHeader
from lwptv_lightning.checkpoints.payload import (
    HEADER_KEY,
    NO_CHECKSUM,
    PAYLOAD_KEY,
    checksum_place,
    header_checksum,
    payload_checksum,
)
from lwptv_lightning.checkpoints.safetensors import SAFETENSORS_DTYPES
from lwptv_lightning.checkpoints.shards import index_of, publish, require_free
from lwptv_lightning.files import Stage, naming, sync
from lwptv_lightning.registry import printable, require_kind, shown

_OPEN_AT_ONCE = 16
"""Shards that are open while they are written: a system allows only so many files."""
_LONGEST_HEADER = 100_000_000
"""Bytes of a header that readers of the format take."""
_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}


def require_safetensors_path(path: str | Path) -> None:
    """Raise unless a path ends in ``.safetensors``."""
    require_kind("the file to write", path, str | PathLike, "a path that ends in .safetensors")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"the file to write must end in .safetensors, not {shown(str(path))}.")


def require_place(path: str | Path, *, overwrite: bool = True) -> None:
    """Raise, before any work, where no model can be written to a path; its folder is made.

    Raises:
        ValueError: The path does not end in ``.safetensors``.
        FileExistsError: Something stands there, and ``overwrite`` is false.
        OSError: Nothing can be written there.
    """
    require_safetensors_path(path)
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{printable(path)} is a folder; name a file in it.")
    require_free(path, overwrite)
    with Stage(path):
        pass


def require_storable(headers: Mapping[str, TensorHeader], metadata: Mapping[str, str] | None = None) -> None:
    """Raise a CheckpointError, before any work, for what safetensors files cannot hold."""
    for name, header in headers.items():
        if header.dtype not in _CODES:
            raise CheckpointError(f"{name!r} is {header.dtype}, which safetensors files cannot hold.")
        if name == "__metadata__":
            raise CheckpointError(f"a tensor cannot be named {name!r} in safetensors files: it is the metadata's name.")
        if not _is_unicode(name):
            raise CheckpointError(f"a tensor cannot be named {name!r} in safetensors files: it is no valid Unicode.")
    for key, text in (metadata or {}).items():
        if not (_is_unicode(key) and _is_unicode(text)):
            raise CheckpointError(f"the metadata {key!r} cannot be {text!r}: that is no valid Unicode.")


def write_safetensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str], *, overwrite: bool = True
) -> Path:
    """Write tensors to one file, which is whole or absent, and return its path; see `SafetensorsWriter`."""
    with SafetensorsWriter(path, TensorHeader.of_all(tensors), metadata, overwrite=overwrite) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor.detach().reshape(-1))
    return writer.final


class SafetensorsWriter:
    """Writes tensors to their places in one or several files, in any order and piece by piece.

    Nothing has a final name until the block is left without an error, when all was read back and is on the disk. Then
    it appears in one step, and what another run wrote for the same path is replaced; `publish` says what a reader finds
    meanwhile. Each file has the checksum of its tensors' bytes in its metadata, which `payload_problem` reads.

    Args:
        path: Where to write.
        headers: Name to shape and dtype.
        metadata: What the files say of themselves.
        shard_size: Bytes that a shard has at most, unless one tensor takes more; without it, there is one file.
        overwrite: Whether to replace a model. Without it, one of several writers at once succeeds.

    Attributes:
        final: What to open once the block is left.

    Raises:
        CheckpointError: The format cannot hold a name or a dtype.
        FileExistsError: There is a model, and ``overwrite`` is false.
        OSError: The disk is full, or nothing can be written there.
    """

    def __init__(
        self,
        path: str | Path,
        headers: Mapping[str, TensorHeader],
        metadata: Mapping[str, str],
        shard_size: int | None = None,
        *,
        overwrite: bool = True,
    ) -> None:
        require_storable(headers, metadata)
        self._path = Path(path)
        self._headers = headers
        self._metadata = {**metadata, PAYLOAD_KEY: NO_CHECKSUM, HEADER_KEY: NO_CHECKSUM}
        self._shards = {str(number): names for number, names in enumerate(_divide(headers, shard_size))}
        self._overwrite = overwrite
        self._stage = Stage(path)
        self._open: dict[str, BinaryIO] = {}
        self._place: dict[str, tuple[str, int]] = {}
        self.final = self._path if len(self._shards) == 1 else index_of(self._path)

    def __enter__(self) -> SafetensorsWriter:
        require_free(self._path, self._overwrite)
        self._stage.__enter__()
        try:
            self._require_space()
            with naming(self._path):
                for shard, names in self._shards.items():
                    self._begin(shard, names)
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
        shard, offset = self._place[name]
        # Bytes, since numpy does not know every dtype.
        data = values.cpu().contiguous().view(torch.uint8).numpy().data
        with naming(self._path):
            file = self._file(shard)
            file.seek(offset + start * values.dtype.itemsize)
            file.write(data)

    def _require_space(self) -> None:
        needed, disk = self._total_size(), shutil.disk_usage(self._stage.folder)
        if disk.total and disk.free < needed:  # some systems say that they have no size at all
            text = f"{self._path} needs {needed:,} bytes, and {disk.free:,} are free on its disk."
            raise OSError(errno.ENOSPC, text)

    def _total_size(self) -> int:
        return sum(header.nbytes for header in self._headers.values())

    def _begin(self, shard: str, names: Iterable[str]) -> None:
        """Create a shard's file with its header, in which all places are fixed beforehand."""
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
        if len(text) > _LONGEST_HEADER:
            raise CheckpointError(
                f"{self._path}: a header of {len(text):,} bytes is more than readers of the format take."
            )
        (self._stage.folder / shard).touch(exist_ok=False)
        file = self._file(shard)
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        self._place |= {name: (shard, 8 + len(text) + offset) for name, offset in offsets.items()}

    def _file(self, shard: str) -> BinaryIO:
        """Return a shard's file; of several open ones, the one opened first is closed where they become too many."""
        if shard not in self._open:
            if len(self._open) >= _OPEN_AT_ONCE:
                self._open.pop(next(iter(self._open))).close()
            self._open[shard] = (self._stage.folder / shard).open("r+b")
        return self._open[shard]

    def _finish(self) -> None:
        with naming(self._path):
            while self._open:
                self._open.popitem()[1].close()
            with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
                for _ in threads.map(self._seal, self._shards):
                    pass
        publish(self._stage, self._shards, self._total_size(), overwrite=self._overwrite)

    def _seal(self, shard: str) -> None:
        """Put the checksums into a shard's file, see that it can be read as it was meant, and bring it to the disk."""
        path = self._stage.folder / shard
        made = {}
        with path.open("r+b") as file:
            # The header's last, as the other one stands in it.
            for key, checksum in ((PAYLOAD_KEY, payload_checksum), (HEADER_KEY, header_checksum)):
                made[key] = checksum(file)
                file.seek(0)
                text = file.read(int.from_bytes(file.read(8), "little"))
                file.seek(8 + checksum_place(text, key))
                file.write(made[key].encode())
        self._require_readable(shard, self._metadata | made)
        sync(path)

    def _require_readable(self, shard: str, metadata: Mapping[str, str]) -> None:
        wanted = {name: (_CODES[self._headers[name].dtype], self._headers[name].shape) for name in self._shards[shard]}
        try:
            with safe_open(self._stage.folder / shard, framework="pt") as file:
                slices = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118 - it is no mapping
                found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices}
                about = file.metadata()
        except SafetensorError as error:
            raise CheckpointError(f"{self._path}: what was written cannot be read ({error}).") from error
        if found != wanted or about != metadata:
            raise CheckpointError(f"{self._path}: what was written is read otherwise, and was removed.")

    def _discard(self) -> None:
        try:
            while self._open:
                with suppress(OSError):  # of what is thrown away
                    self._open.popitem()[1].close()
        finally:
            self._stage.__exit__()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # halves of surrogate pairs, as names of undecodable bytes have them
        return False
    return True


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
