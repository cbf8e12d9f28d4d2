"""The checksum that a file of the library has in its metadata, by which bits that changed on the disk are found."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError, safe_open

from lwptv_lightning.files import InputFile

PAYLOAD_KEY = "lwptv_payload_sha256"
"""The metadata's key of the SHA-256 of all bytes after the header, as 64 hexadecimal digits."""
_AT_ONCE = 1 << 20
"""Bytes that are read at a time."""


def payload_checksum(file: BinaryIO) -> str:
    """Return the SHA-256 of all bytes after the header of an open safetensors file, as 64 hexadecimal digits."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_AT_ONCE))
    file.seek(0)
    file.seek(8 + int.from_bytes(file.read(8), "little"))
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(buffer[:count])
    return digest.hexdigest()


def payload_problem(path: str | Path) -> str | None:
    """Say how the bytes of one safetensors file's tensors are not those that were written; None where they are.

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
                recorded = (handle.metadata() or {}).get(PAYLOAD_KEY)
        except SafetensorError as error:
            return f"it is no readable safetensors file ({error})."
        if recorded is None:
            return f"its metadata hold no checksum, {PAYLOAD_KEY}, by which to find whether it changed."
        found = payload_checksum(file)
    if found == recorded:
        return None
    return f"its tensors are not those that were written: their SHA-256 is {found}, and {recorded} was recorded."
