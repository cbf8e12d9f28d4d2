"""Reads the ``.metadata`` of `torch.distributed.checkpoint`, a pickle, as data: what is stored where, and nothing else.

Of the classes that it names none is imported or built. Those of `torch.distributed` of which it consists are known by
their names and fields; what it holds beside them is not looked at.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch

from lwptv_lightning.checkpoints.checkpoint import CheckpointError, TensorHeader, some_of
from lwptv_lightning.checkpoints.mapped import MOST_DIMENSIONS
from lwptv_lightning.checkpoints.pickles import read_pickle
from lwptv_lightning.checkpoints.pieces import is_whole
from lwptv_lightning.checkpoints.rebuilt import Named, Opaque
from lwptv_lightning.files import InputFile

_MOST = 1 << 60
_MOST_DEEP = 16
"""How many mappings in one another are told apart by a name's path."""


@dataclass(frozen=True)
class StoredPiece:
    """A part of a tensor, and which bytes of which file it is, by a name that a stranger wrote."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass
class Described:
    """What is stored of a state.

    Attributes:
        headers: Flat name to shape and dtype of each tensor.
        pieces: Flat name to the pieces of each tensor.
        paths: Flat name to where a tensor stands in the nested state, its keys.
        objects: Where what is no tensor stands there, such as a learning rate.
    """

    headers: dict[str, TensorHeader] = field(default_factory=dict)
    pieces: dict[str, tuple[StoredPiece, ...]] = field(default_factory=dict)
    paths: dict[str, tuple[str, ...]] = field(default_factory=dict)
    objects: dict[tuple[str, ...], None] = field(default_factory=dict)

    def add(self, other: Described) -> None:
        """Add what another process says that it stored.

        Raises:
            ValueError: The two say different things of one tensor.
        """
        for name, header in other.headers.items():
            if self.headers.setdefault(name, header) != header:
                raise ValueError(f"{name!r} of another shape or dtype than in another process's")
            own = {(each.offsets, each.sizes): each for each in (*self.pieces.get(name, ()), *other.pieces[name])}
            self.pieces[name] = tuple(own.values())
        self.paths |= other.paths
        self.objects |= other.objects

    def require_whole(self, names: Sequence[str], source: str) -> None:
        """Raise a `CheckpointError` where some tensors have pieces that do not make a whole."""
        torn = [
            name
            for name in names
            if not is_whole(self.headers[name].shape, [(each.offsets, each.sizes) for each in self.pieces[name]])
        ]
        if torn:
            raise CheckpointError(f"{source}: the pieces that are stored do not make up the whole of {some_of(torn)}")


def read_metadata(files: Sequence[InputFile]) -> Described:
    """Return what the ``.metadata`` of a checkpoint say, one of all processes or one of each.

    Raises:
        CheckpointError: One is none, is damaged, or says what cannot be.
    """
    found = Described()
    for file in files:
        try:
            with file.open() as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                found.add(_described(read_pickle(content, _no_storage)))
        except CheckpointError:
            raise
        except Exception as error:  # a damaged file makes a reader fail in any way whatever
            raise CheckpointError(
                f"{file.path}: not a readable .metadata of torch.distributed.checkpoint "
                f"({type(error).__name__}: {error})."
            ) from error
    return found


def _no_storage(*_: object) -> NoReturn:
    raise ValueError("stored numbers where none may be")


def _described(content: Any) -> Described:
    about = _fields(content, "Metadata")
    stored = {}
    for key, value in _mapping(about.get("storage_data"), "storage_data").items():
        index = _fields(key, "MetadataIndex")
        offset = index.get("offset")
        stored[_text(index["fqn"]), None if offset is None else _sizes(offset)] = value
    paths = about.get("planner_data")
    found = Described()
    for name, value in _mapping(about["state_dict_metadata"], "state_dict_metadata").items():
        path = paths.get(name) if type(paths) is dict else None
        place = _path(path) if type(path) is tuple and path else (_text(name),)
        if _kind(value) == "BytesStorageMetadata":
            found.objects[place] = None
            continue
        found.headers[name], chunks = _tensor(_fields(value, "TensorStorageMetadata"))
        found.pieces[name] = tuple(_piece(name, *chunk, stored) for chunk in chunks if 0 not in chunk[1])
        found.paths[name] = place
    return found


def _tensor(about: Mapping[str, Any]) -> tuple[TensorHeader, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Return the header of a tensor, and the offsets and sizes of its chunks, each once."""
    properties = about["properties"]
    _require_kind(properties, "TensorProperties")
    dtype = properties.state["dtype"] if type(properties.state) is dict else properties.state[0]
    kind = vars(torch).get(dtype.name.removeprefix("torch.")) if type(dtype) is Named else None
    if not isinstance(kind, torch.dtype):
        raise TypeError("a tensor whose dtype is none")
    chunks = (_fields(chunk, "ChunkStorageMetadata") for chunk in about["chunks"])
    places = dict.fromkeys((_sizes(chunk["offsets"]), _sizes(chunk["sizes"])) for chunk in chunks)
    return TensorHeader(_sizes(about["size"]), kind), list(places)


def _piece(
    name: str,
    offsets: tuple[int, ...],
    sizes: tuple[int, ...],
    stored: Mapping[tuple[str, tuple[int, ...] | None], Any],
) -> StoredPiece:
    place = stored.get((name, offsets), stored.get((name, None)))
    if place is None:
        raise ValueError(f"it does not say where the piece of {name!r} at {offsets} is stored")
    about = _fields(place, "_StorageInfo")
    if transforms := about.get("transform_descriptors"):
        raise ValueError(f"{name!r} is stored in another form, {transforms!r}; load it with torch and save it without")
    file, (start, length) = _text(about["relative_path"]), _sizes((about["offset"], about["length"]))
    return StoredPiece(offsets, sizes, file, start, length)


def _kind(value: Any) -> str:
    """Return the class of an object of `torch.distributed`, or an empty text."""
    home, _, name = value.what.rpartition(".") if type(value) is Opaque else ("", "", "")
    return name if home.startswith("torch.distributed.") else ""


def _require_kind(value: Any, kind: str) -> None:
    if _kind(value) != kind:
        found = value.what if type(value) is Opaque else type(value).__name__
        raise TypeError(f"it holds a {found} where a {kind} is expected")


def _fields(value: Any, kind: str) -> dict[str, Any]:
    _require_kind(value, kind)
    return _mapping(value.state, kind)


def _mapping(value: Any, what: str) -> dict[Any, Any]:
    if type(value) is not dict:
        raise TypeError(f"{what} is no mapping")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("a name that is none")
    return value


def _path(value: tuple[Any, ...]) -> tuple[str, ...]:
    keys = [str(key) if type(key) is int else _text(key) for key in value]
    return (*keys[: _MOST_DEEP - 1], ".".join(keys[_MOST_DEEP - 1 :])) if len(keys) > _MOST_DEEP else tuple(keys)


def _sizes(value: Any) -> tuple[int, ...]:
    if type(value) is Opaque and value.what == "torch.Size" and len(value.arguments) == 1:
        (value,) = value.arguments
    if type(value) not in (tuple, list) or len(value) > MOST_DIMENSIONS:
        raise TypeError("a size that is none")
    if any(type(each) is not int or not 0 <= each < _MOST for each in value):
        raise ValueError("a size of other than whole numbers")
    return tuple(value)
