"""The checksums that a file of the library has in its metadata, by which bits that changed on the disk are found."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError, safe_open

from lwptv_lightning.files import InputFile
from lwptv_lightning.registry import work

PAYLOAD_KEY = "lwptv_payload_sha256"
"""The metadata's key of the SHA-256 of all bytes after the header, as 64 hexadecimal digits."""
HEADER_KEY = "lwptv_header_sha256"
"""The metadata's key of the SHA-256 of the header's text, in which 64 zeros stand in its own place."""
FILES_KEY = "lwptv_files_sha256"
"""What a distributed checkpoint says beside its tensors: file name to SHA-256, as JSON."""
CHECKSUM_KEYS = (PAYLOAD_KEY, HEADER_KEY)
NO_CHECKSUM = "0" * 64
_AT_ONCE = 1 << 20
"""Bytes that are read at a time."""


def payload_checksum(file: BinaryIO) -> str:
    """Return the SHA-256 of all bytes after the header of an open safetensors file, as 64 hexadecimal digits."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_AT_ONCE))
    total = file.seek(0, os.SEEK_END)
    file.seek(0)
    file.seek(8 + int.from_bytes(file.read(8), "little"))
    with work("Checking bytes", total) as advance:
        while count := file.readinto(buffer):  # type: ignore[attr-defined]
            digest.update(buffer[:count])
            advance(count)
    return digest.hexdigest()


def with_checksum(text: bytes, key: str, checksum: str) -> bytes:
    """Return a header's text, as the library writes it, with a checksum in the place of the one that it has."""
    marker = f'{json.dumps(key)}: "'.encode()  # nothing else reads so: in a name or a text, quotes are escaped
    place = text.index(marker) + len(marker)
    return text[:place] + checksum.encode() + text[place + len(NO_CHECKSUM) :]


def header_checksum(text: bytes) -> str:
    """Return the SHA-256 of a header, its length before its text, as 64 hexadecimal digits."""
    start = len(text).to_bytes(8, "little")
    return hashlib.sha256(start + with_checksum(text, HEADER_KEY, NO_CHECKSUM)).hexdigest()


def payload_problem(path: str | Path) -> str | None:
    """Say how the bytes of one safetensors file are not those that were written; None where they are.

    Of a model in shards, each shard has a checksum of its own. A file that none was written to has that problem.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no regular one.

    Example:
        >>> import tempfile, torch
        >>> from lwptv_lightning.checkpoints import write_safetensors
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_safetensors({"w": torch.ones(2)}, f"{folder}/m.safetensors", {})
        ...     whole = payload_problem(path)
        ...     _ = path.write_bytes(path.read_bytes()[:-1] + b"!")
        ...     print(whole, payload_problem(path))
        None its tensors are not those that were written: ...
    """
    with InputFile.at(path).open() as file:
        try:
            with safe_open(path, framework="pt") as handle:
                about = handle.metadata() or {}
        except SafetensorError as error:
            return f"it is no readable safetensors file ({error})."
        if not any(key in about for key in CHECKSUM_KEYS):
            return f"its metadata hold no checksum, {PAYLOAD_KEY}, by which to find whether it changed."
        if not _has_its_header(file, about.get(HEADER_KEY)):
            return f"its header is not the one that was written: another SHA-256 than {about.get(HEADER_KEY)}."
        recorded, found = about.get(PAYLOAD_KEY), payload_checksum(file)
    if found == recorded:
        return None
    return f"its tensors are not those that were written: their SHA-256 is {found}, and {recorded} was recorded."


def with_checksums_of(folder: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what a folder's model says of itself, with the SHA-256 of each file there and of these texts."""
    sums = {file.name: _whole_checksum(file) for file in sorted(folder.iterdir())}
    described = {**metadata, FILES_KEY: json.dumps(sums)}
    return {**described, HEADER_KEY: _texts_checksum(described)}


def folder_problems(folder: Path, metadata: Mapping[str, str], source: Path) -> dict[str, str]:
    """Say which files of a folder are not as `with_checksums_of` found them, ``source`` among them, which says so."""
    others = {key: text for key, text in metadata.items() if key != HEADER_KEY}
    if metadata.get(HEADER_KEY) != _texts_checksum(others):
        return {str(source): "its texts are not those that were written: they have another SHA-256."}
    recorded, problems = json.loads(metadata[FILES_KEY]), {}
    for name, expected in recorded.items():
        try:
            found = _whole_checksum(folder / name)
        except FileNotFoundError:
            problems[str(folder / name)] = "it is missing."
            continue
        if found != expected:
            problems[str(folder / name)] = f"it is not what was written: its SHA-256 is {found}, expected {expected}."
    return problems


def _whole_checksum(path: Path) -> str:
    with InputFile.at(path).open() as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _texts_checksum(texts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def _has_its_header(file: BinaryIO, recorded: str | None) -> bool:
    file.seek(0)
    text = file.read(int.from_bytes(file.read(8), "little"))
    try:
        return header_checksum(text) == recorded
    except ValueError:  # another program wrote the header anew
        return False
