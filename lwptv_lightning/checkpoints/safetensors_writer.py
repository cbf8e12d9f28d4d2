"""Writes safetensors, in one file or in shards with an index, as the tensors are made.

What is written goes to the disk, and what is whole is read back, by threads beside the one that makes the rest.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
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
    header_checksum,
    payload_checksum,
    with_checksum,
)
from lwptv_lightning.checkpoints.shards import index_of, publish, require_free
from lwptv_lightning.checkpoints.storable import CODES, require_storable
from lwptv_lightning.files import Stage, naming, sync

_OPEN_AT_ONCE = 16
"""Shards that are open while they are written: a system allows only so many files."""
_SYNCED_AT_ONCE = 1 << 25
"""Bytes that are brought to the disk while others are made; a smaller file is when it is whole."""
_LONGEST_HEADER = 100_000_000
"""Bytes of a header that readers of the format take."""


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
        metadata: What the files say of themselves; see `describe`.
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
        self._metadata = _with_checksums(metadata)
        self._shards = {str(number): _Shard(names) for number, names in enumerate(_divide(headers, shard_size))}
        self._overwrite = overwrite
        self._stage = Stage(path)
        self._open: dict[str, BinaryIO] = {}
        self._place: dict[str, tuple[str, int]] = {}
        self._threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
        self.final = self._path if len(self._shards) == 1 else index_of(self._path)

    def __enter__(self) -> SafetensorsWriter:
        require_free(self._path, self._overwrite)
        self._stage.__enter__()
        try:
            self._require_space()
            with naming(self._path):
                for shard in self._shards:
                    self._begin(shard)
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
            self._go_on(shard, len(data))

    @property
    def metadata(self) -> dict[str, str]:
        """What the files say of themselves, without checksums."""
        return {key: text for key, text in self._metadata.items() if key not in (PAYLOAD_KEY, HEADER_KEY)}

    def describe(self, metadata: Mapping[str, str]) -> None:
        """Replace what the files say of themselves, by as many characters or fewer, while they are written.

        Raises:
            ValueError: They are more, for which there is no place any more.
            CheckpointError: The format cannot hold them.
        """
        require_storable({}, metadata)
        described = _with_checksums(metadata)
        if len(json.dumps(described)) > len(json.dumps(self._metadata)):
            raise ValueError(f"{self._path}: the metadata are longer than those for which there is a place.")
        self._metadata = described

    def _require_space(self) -> None:
        needed, disk = self._total_size(), shutil.disk_usage(self._stage.folder)
        if disk.total and disk.free < needed:  # some systems say that they have no size at all
            text = f"{self._path} needs {needed:,} bytes, and {disk.free:,} are free on its disk."
            raise OSError(errno.ENOSPC, text)

    def _total_size(self) -> int:
        return sum(header.nbytes for header in self._headers.values())

    def _begin(self, shard: str) -> None:
        """Create a shard's file with its header, in which all places are fixed beforehand."""
        state = self._shards[shard]
        text = self._header(state)
        text += b" " * (-len(text) % 8)
        if len(text) > _LONGEST_HEADER:
            raise CheckpointError(
                f"{self._path}: a header of {len(text):,} bytes is more than readers of the format take."
            )
        (self._stage.folder / shard).touch(exist_ok=False)
        file = self._file(shard)
        file.write(len(text).to_bytes(8, "little") + text)
        state.header, state.size = len(text), sum(self._headers[name].nbytes for name in state.names)
        state.missing = state.size
        file.truncate(8 + state.header + state.size)
        begin = 8 + state.header
        self._place |= {name: (shard, begin + offset) for name, (offset, _) in self._offsets(state).items()}

    def _header(self, shard: _Shard) -> bytes:
        entries: dict[str, object] = {"__metadata__": self._metadata}
        for name, offsets in self._offsets(shard).items():
            header = self._headers[name]
            entries[name] = {"dtype": CODES[header.dtype], "shape": list(header.shape), "data_offsets": offsets}
        return json.dumps(entries).encode()

    def _offsets(self, shard: _Shard) -> dict[str, tuple[int, int]]:
        """Return where tensors begin and end, wider elements first, so that each stands at a multiple of their size."""
        offsets, end = {}, 0
        for name in sorted(shard.names, key=lambda name: -self._headers[name].dtype.itemsize):
            offsets[name] = end, end + self._headers[name].nbytes
            end = offsets[name][1]
        return offsets

    def _file(self, shard: str) -> BinaryIO:
        """Return a shard's file; of several open ones, the one opened first is closed where they become too many."""
        if shard not in self._open:
            if len(self._open) >= _OPEN_AT_ONCE:
                self._open.pop(next(iter(self._open))).close()
            self._open[shard] = (self._stage.folder / shard).open("r+b")
        return self._open[shard]

    def _go_on(self, shard: str, written: int) -> None:
        """Let what is written of a large shard go to the disk, and be read back when it is whole, beside the rest."""
        state = self._shards[shard]
        if not written or state.size < _SYNCED_AT_ONCE:
            return
        state.missing -= written
        state.unsynced += written
        state.checksum = None  # of what was there before
        if is_whole := state.missing <= 0:
            self._open.pop(shard).close()
            state.checksum = self._threads.submit(self._payload_checksum, shard)
        if (state.is_synced() and state.unsynced >= _SYNCED_AT_ONCE) or is_whole:
            state.unsynced = 0
            state.syncs.append(self._threads.submit(sync, self._stage.folder / shard))

    def _finish(self) -> None:
        with naming(self._path):
            while self._open:
                self._open.popitem()[1].close()
            for _ in self._threads.map(self._seal, self._shards):
                pass
        made = {shard: state.names for shard, state in self._shards.items()}
        publish(self._stage, made, self._total_size(), overwrite=self._overwrite)

    def _seal(self, shard: str) -> None:
        """Put the checksums into a shard's file, see that it can be read as it was meant, and bring it to the disk."""
        state, path = self._shards[shard], self._stage.folder / shard
        payload = self._payload_checksum(shard) if state.checksum is None else state.checksum.result()
        text = with_checksum(self._header(state).ljust(state.header), PAYLOAD_KEY, payload)
        header = header_checksum(text)  # in which the other one stands
        with path.open("r+b") as file:
            file.seek(8)
            file.write(with_checksum(text, HEADER_KEY, header))
        self._require_readable(shard, self._metadata | {PAYLOAD_KEY: payload, HEADER_KEY: header})
        state.is_synced(wait=True)
        sync(path)

    def _payload_checksum(self, shard: str) -> str:
        with (self._stage.folder / shard).open("rb") as file:
            return payload_checksum(file)

    def _require_readable(self, shard: str, metadata: Mapping[str, str]) -> None:
        headers = {name: self._headers[name] for name in self._shards[shard].names}
        wanted = {name: (CODES[header.dtype], header.shape) for name, header in headers.items()}
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
            self._threads.shutdown(cancel_futures=True)
            while self._open:
                with suppress(OSError):  # of what is thrown away
                    self._open.popitem()[1].close()
        finally:
            self._stage.__exit__()


@dataclass
class _Shard:
    """How far a shard's file is.

    Attributes:
        names: The tensors in it.
        header: Bytes of its header's text.
        size: Bytes of its tensors.
        missing: How many of these are not written yet.
        unsynced: How many were written since it was last sent to the disk.
        syncs: What sends it there.
        checksum: What reads back its tensors, when it is whole.
    """

    names: list[str]
    header: int = 0
    size: int = 0
    missing: int = 0
    unsynced: int = 0
    syncs: list[Future[None]] = field(default_factory=list)
    checksum: Future[str] | None = None

    def is_synced(self, *, wait: bool = False) -> bool:
        """Tell whether all is on the disk that was sent there; what kept it from it is raised.

        The system tells that once, to whoever asks first, so that no later one would know.
        """
        while self.syncs and (wait or self.syncs[0].done()):
            self.syncs.pop(0).result()
        return not self.syncs


def _with_checksums(metadata: Mapping[str, str]) -> dict[str, str]:
    return {**metadata, PAYLOAD_KEY: NO_CHECKSUM, HEADER_KEY: NO_CHECKSUM}


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
