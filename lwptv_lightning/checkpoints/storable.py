"""Whether a model can be written, which is told before any work."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from lwptv_lightning.checkpoints.checkpoint import CheckpointError, TensorHeader
from lwptv_lightning.checkpoints.safetensors import SAFETENSORS_DTYPES
from lwptv_lightning.checkpoints.shards import require_free
from lwptv_lightning.files import Stage
from lwptv_lightning.registry import printable, require_kind, shown

CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}
"""The dtypes that safetensors files can hold, and the format's names of them."""


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
    require_writable(path, overwrite=overwrite)


def require_writable(path: str | Path, *, overwrite: bool = True) -> None:
    """Raise, before any work, where no file can be written to a path; its folder is made.

    Raises:
        FileExistsError: Something stands there, and ``overwrite`` is false.
        OSError: Nothing can be written there.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{printable(path)} is a folder; name a file in it.")
    require_free(path, overwrite)
    with Stage(path):
        pass


def require_storable(headers: Mapping[str, TensorHeader], metadata: Mapping[str, str] | None = None) -> None:
    """Raise a CheckpointError, before any work, for what safetensors files cannot hold."""
    for name, header in headers.items():
        if header.dtype not in CODES:
            raise CheckpointError(f"{name!r} is {header.dtype}, which safetensors files cannot hold.")
        if name == "__metadata__":
            raise CheckpointError(f"a tensor cannot be named {name!r} in safetensors files: it is the metadata's name.")
        if not _is_unicode(name):
            raise CheckpointError(f"a tensor cannot be named {name!r} in safetensors files: it is no valid Unicode.")
    for key, text in (metadata or {}).items():
        if not (_is_unicode(key) and _is_unicode(text)):
            raise CheckpointError(f"the metadata {key!r} cannot be {text!r}: that is no valid Unicode.")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # halves of surrogate pairs, as names of undecodable bytes have them
        return False
    return True
