"""The two formats of ``torch.save``: an archive with an entry for each storage, and one pickle after the other before.

Both are read in place: a tensor is a view of the mapped file.
"""

from __future__ import annotations

import io
import mmap
import zipfile
from io import BufferedReader
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor

from lwptv_lightning.checkpoints.mapped import map_bytes, numbers_at
from lwptv_lightning.checkpoints.pickles import read_pickle
from lwptv_lightning.checkpoints.rebuilt import ForeignCodeError
from lwptv_lightning.files import InputFile

_ZIP = b"PK\x03\x04"
"""What an archive begins with."""
_LOCAL_HEADER = 30
_ENCRYPTED = 0x1
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What a file begins with that is no archive."""


def read_archive(data: Tensor) -> Any:
    """Return what an archive of ``torch.save`` holds whose bytes, ``(n,)``, are a part of a mapped file.

    Raises:
        ForeignCodeError: It holds code.
        Exception: It is damaged; any exception whatever.
    """
    return _read_archive(BufferedReader(_MappedBytes(data)), data)


class _MappedBytes(io.RawIOBase):
    """Bytes, ``(n,)``, to be read as a file is."""

    def __init__(self, data: Tensor) -> None:
        values: Any = data.numpy()
        self._bytes = memoryview(values)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(offset + (0, self._at, len(self._bytes))[whence], 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        found = self._bytes[self._at : self._at + len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


def read_torch_file(file: InputFile) -> Any:
    """Return what a file of ``torch.save`` holds; see `read_pickle`.

    Raises:
        ForeignCodeError: It holds code.
        CheckpointError: It was changed meanwhile.
        Exception: It is damaged; any exception whatever.
    """
    with file.open() as opened:
        is_archive = opened.read(len(_ZIP)) == _ZIP
        opened.seek(0)
        data = map_bytes(file)
        if is_archive:
            content = _read_archive(opened, data)
        else:
            # A mapped file reads what there is, however much is asked for.
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as sequence:
                content = _read_sequence(sequence, data)
    file.require_unchanged()
    return content


def _read_archive(file: BinaryIO, data: Tensor) -> Any:
    entries = _entries(file)
    root = next(iter(entries)).partition("/")[0]

    def entry(name: str) -> slice:
        place = entries[f"{root}/{name}"]
        if isinstance(place, str):
            raise ValueError(f"the entry {name!r} {place}")
        return place

    if f"{root}/constants.pkl" in entries:
        raise ForeignCodeError("TorchScript")
    if f"{root}/byteorder" in entries and bytes(data[entry("byteorder")].tolist()) != b"little":
        raise ValueError("written on a machine of another byte order; load it and save it there as safetensors")
    found: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        if key not in found:
            found[key] = numbers_at(data, entry(f"data/{key}"), dtype)
        return _checked(found[key], key, dtype, numel)

    return read_pickle(io.BytesIO(data[entry("data.pkl")].numpy().tobytes()), storage)


def _entries(file: BinaryIO) -> dict[str, slice | str]:
    """Return the bytes of an archive's entries by name, in the order in which they stand, or why they are not read."""
    found: dict[str, slice | str] = {}
    with zipfile.ZipFile(file) as archive:
        reached = 0
        for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
            name = entry.filename
            if name in found:
                raise ValueError(f"the entry {name!r} twice")
            start = _start_of(file, entry)
            # As torch.save writes them: one after the other, from the beginning on.
            if entry.header_offset < reached or (not found and entry.header_offset):
                raise ValueError(f"the entry {name!r} within another one, or something before the first entry")
            reached = start + entry.compress_size
            found[name] = slice(start, reached)
            if entry.flag_bits & _ENCRYPTED:
                found[name] = "is encrypted"
            elif entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                found[name] = "is compressed, and cannot be mapped; load the file with torch and save it anew"
        if reached > archive.start_dir:
            raise ValueError(f"the entry {name!r} longer than the file")
    return found


def _start_of(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Return where an entry's bytes begin, behind a header that must be the one of the archive's directory."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER)
    name_length, more_length = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    name = file.read(name_length).decode("utf-8" if entry.flag_bits & 0x800 else "cp437")
    method, flags = int.from_bytes(header[8:10], "little"), int.from_bytes(header[6:8], "little")
    is_same = name == entry.orig_filename and method == entry.compress_type and flags == entry.flag_bits
    if not header.startswith(_ZIP) or not is_same:
        raise ValueError(f"the entry {entry.filename!r} under two different headers")
    return entry.header_offset + _LOCAL_HEADER + name_length + more_length


def _read_sequence(file: mmap.mmap, data: Tensor) -> Any:
    if read_pickle(file, _no_storage) != _MAGIC:
        raise ValueError("it does not begin as one does")
    if read_pickle(file, _no_storage) != _PROTOCOL:
        raise ValueError("of a version that is not known")
    read_pickle(file, _no_storage)  # what machine it was written on; its numbers are always little-endian
    begin = file.tell()
    # Where numbers stand is told behind the objects that they belong to, which are therefore read twice.
    sizes: dict[str, Tensor] = {}

    def described(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        sizes.setdefault(key, torch.empty(numel, dtype=dtype, device="meta"))
        return _checked(sizes[key], key, dtype, numel)

    read_pickle(file, described)
    keys = read_pickle(file, _no_storage)
    if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(sizes):
        raise ValueError("other numbers are stored than are used")
    found: dict[str, Tensor] = {}
    at = file.tell()
    for key in keys:
        stored, at = int.from_bytes(file[at : at + 8], "little"), at + 8
        size, at = sizes[key], at + sizes[key].nbytes
        if stored != len(size) or at > len(data):
            raise ValueError(f"{stored} numbers of storage {key!r}, or fewer, where {len(size)} are used")
        found[key] = numbers_at(data, slice(at - size.nbytes, at), size.dtype)
    file.seek(begin)
    return read_pickle(file, lambda key, dtype, numel: found[key])


def _checked(storage: Tensor, key: str, dtype: torch.dtype, numel: int) -> Tensor:
    if storage.dtype != dtype or len(storage) != numel:
        raise ValueError(f"storage {key!r} has {len(storage)} {storage.dtype} where {numel} {dtype} are used")
    return storage


def _no_storage(key: str, dtype: torch.dtype, numel: int) -> NoReturn:
    raise ValueError("stored numbers where none may be")
