"""`ModelFolder`: how a library has a model in a folder, and what of a merge can be written so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lwptv_lightning.checkpoints import Checkpoint, CheckpointError, TensorHeader

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """How a library has a model in a folder.

    Attributes:
        library: A name among `lwptv_lightning.libraries.FORMATS`.
        weights: The name of the file for the weights.
        files: File name to what else stands there.
        in_shards: Whether the library reads shards and their index.
        notes: What is to be known of it, in sentences.
    """

    library: str
    weights: str = WEIGHTS
    files: Mapping[str, bytes] = field(default_factory=dict)
    in_shards: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """A merged model for which a folder is to be made.

    Attributes:
        origin: The base that it is of.
        headers: Its tensors, without those that are left out.
        left_out: Tensors of the base that are not written: the classifier that no task shares.
    """

    origin: Checkpoint
    headers: Mapping[str, TensorHeader]
    left_out: tuple[str, ...] = ()

    @property
    def is_as_stored(self) -> bool:
        """Whether names and shapes are those of the base's own file, which its configuration is of."""
        stored = self.origin.stored_headers
        same = self.headers.keys() == stored.keys()
        return same and all(header.shape == stored[name].shape for name, header in self.headers.items())

    @property
    def place(self) -> str:
        """Where the base stands, for messages."""
        return str(self.origin.source if self.origin.folder is None else self.origin.folder)


class FolderError(CheckpointError):
    """A model that a library would not load from a folder."""


def as_json(content: Mapping[str, Any]) -> bytes:
    """Return JSON as libraries write it."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def misfit(wanted: Mapping[str, tuple[int, ...]], headers: Mapping[str, TensorHeader]) -> str | None:
    """Say how tensors are not those that a library's model has; None where they are.

    Example:
        >>> import torch
        >>> misfit({"a": (2,)}, {"a": TensorHeader((3,), torch.float32)})
        "'a' would have shape (2,), not (3,)"
    """
    if missing := sorted(wanted.keys() - headers.keys()):
        return f"it would have {missing[0]!r} too" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
    if extra := sorted(headers.keys() - wanted.keys()):
        return f"it would not have {extra[0]!r}" + (f" and {len(extra) - 1} more" if len(extra) > 1 else "")
    for name, shape in wanted.items():
        if tuple(shape) != headers[name].shape:
            return f"{name!r} would have shape {tuple(shape)}, not {headers[name].shape}"
    return None
