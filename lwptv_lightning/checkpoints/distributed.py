"""Reads what sharded runs write, by `torch.distributed.checkpoint`, in this process alone.

That are the folders of Lightning's ``ModelParallelStrategy`` and ``FSDPStrategy``, of Fabric, of accelerate and of
whoever calls ``dcp.save``: a ``.metadata`` and ``*.distcp`` files; or, by its ``HuggingFaceStorageWriter``, safetensors
each with a part of the tensors. Of optimizers nothing is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError, TensorHeader, some_of
from lwptv_lightning.checkpoints.distributed_metadata import Described, StoredPiece, read_metadata
from lwptv_lightning.checkpoints.mapped import map_bytes
from lwptv_lightning.checkpoints.pieces import Piece, PiecesReader, is_whole
from lwptv_lightning.checkpoints.plain import plain_tensors
from lwptv_lightning.checkpoints.rebuilt import Opaque
from lwptv_lightning.checkpoints.safetensors import _from_safetensors
from lwptv_lightning.checkpoints.torch_file import LIGHTNING
from lwptv_lightning.checkpoints.torch_storage import read_archive
from lwptv_lightning.checkpoints.training import AVERAGED, WRAPPERS, Weights, weights_of
from lwptv_lightning.files import InputFile, beside
from lwptv_lightning.registry import parse_json

METADATA = ".metadata"
"""The file that says what is stored where."""
PROCESSES_METADATA = f"__*{METADATA}"
"""Those of a save in which each process described its own, ``use_collectives=False``."""
PROVENANCE = "lwptv.json"
"""What the library writes beside them, with what a safetensors file has in its metadata."""
HUGGING_FACE_SHARDS = f"shard-{'[0-9]' * 5}-model-*-of-*.safetensors"
"""The files of torch's HuggingFaceStorageWriter, where each process writes its own."""
_OFFSETS = "DCP_SHARDING_INFO"
_LIGHTNINGS_OWN = "meta.pt"
_OPTIMIZERS_OWN = {"state", "param_groups"}
_OPTIMIZER = re.compile(r"optim(izer)?s?(_?states?)?(_\d+)?")


def require_no_piece(path: Path) -> None:
    """Raise a `CheckpointError` where a file is one of several that hold a sharded run's tensors."""
    if any(path.match(pattern) for pattern in ("*.distcp", PROCESSES_METADATA, HUGGING_FACE_SHARDS)):
        raise CheckpointError(f"{path}: one file of a distributed checkpoint, whose folder is what to open.")


def require_no_distributed_remains(folder: Path) -> None:
    """Raise a `CheckpointError` where a folder has pieces of tensors without what describes them."""
    if next(folder.glob("*.distcp"), None) is not None:
        raise CheckpointError(
            f"{folder}: a distributed checkpoint without its {METADATA}, which is written last: the save did not "
            "finish, or not all files were copied."
        )


def _from_distributed(metadata: Sequence[Path], ema: bool | None) -> Checkpoint:
    folder = metadata[0].parent
    files = [InputFile.at(path, CheckpointError) for path in metadata]
    described = read_metadata(files)
    state = _nested(described, str(folder))
    names, weights = _weights_of(state, str(folder), ema)
    if not names:
        raise CheckpointError(f"{folder}: a distributed checkpoint that holds no tensors of a model.")
    described.require_whole([*names.values()], str(folder))
    stored = _StoredPieces(folder, {piece.file for name in names.values() for piece in described.pieces[name]})
    headers = {name: described.headers[flat] for name, flat in names.items()}
    pieces = {
        name: [stored.piece(flat, each, headers[name].dtype.itemsize) for each in described.pieces[flat]]
        for name, flat in names.items()
    }
    is_lightnings = "state_dict" in state and (folder / _LIGHTNINGS_OWN).is_file()
    checkpoint = Checkpoint(
        str(folder),
        headers,
        PiecesReader(headers, pieces),
        metadata=_said_by(folder),
        folder=folder.absolute(),
        format=LIGHTNING if is_lightnings else "torch.distributed",
        inputs=(*files, *stored.files.values()),
    )
    return weights.taken_by(checkpoint)


def _said_by(folder: Path) -> dict[str, str]:
    """Return what the library wrote of a model beside it, as it stands in the header of a safetensors file."""
    path = folder / PROVENANCE
    if not path.is_file():
        return {}
    said = parse_json(InputFile.at(path, CheckpointError).text(), str(path))
    if not isinstance(said, dict) or not all(isinstance(text, str) for text in said.values()):
        raise CheckpointError(f"{path}: expected texts by their keys.")
    return said


class _StoredPieces:
    """The files of a folder that hold pieces, mapped when one is read, and mapped again in another process."""

    def __init__(self, folder: Path, names: set[str]) -> None:
        self.files: dict[str, InputFile] = {}
        absent = []
        for name in sorted(names):
            path = beside(folder, name, CheckpointError, origin=folder / METADATA)
            try:
                self.files[name] = InputFile.at(path, CheckpointError)
            except FileNotFoundError:
                absent.append(name)
        if absent:
            raise CheckpointError(f"{folder}: files that {METADATA} names are missing: {some_of(absent)}")
        self._mapped: dict[str, Tensor] = {}

    def piece(self, name: str, stored: StoredPiece, itemsize: int) -> Piece:
        file = self.files[stored.file]
        least = math.prod(stored.sizes) * itemsize
        if stored.start + max(stored.length, least) > file.size or stored.length < least:
            raise CheckpointError(
                f"{file.path}: cut off, or of another checkpoint than its {METADATA}: {name!r} should stand in "
                f"{stored.length} bytes from {stored.start} on, of {file.size}."
            )
        place = f"{file.path}, byte {stored.start}"
        return Piece(stored.offsets, stored.sizes, partial(self.read, name, stored), place)

    def read(self, name: str, stored: StoredPiece) -> Tensor:
        file = self.files[stored.file]
        file.require_unchanged()
        if stored.file not in self._mapped:
            self._mapped[stored.file] = map_bytes(file)
        data = self._mapped[stored.file][stored.start : stored.start + stored.length]
        place = f"{file.path}, byte {stored.start}"
        try:
            content = read_archive(data)
        except Exception as error:  # a damaged file makes a reader fail in any way whatever
            file.require_unchanged()
            raise CheckpointError(
                f"{place}: the piece of {name!r} that should stand there cannot be read "
                f"({type(error).__name__}: {error})."
            ) from error
        if not isinstance(content, Tensor):
            kind = content.what if type(content) is Opaque else type(content).__name__
            raise CheckpointError(f"{place}: expected a piece of {name!r}, found a {kind}.")
        return plain_tensors({name: content}, place)[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "_mapped": {}}


def _nested(described: Described, source: str) -> dict[str, Any]:
    """Return the state that was stored, nested as it was: flat names in the place of tensors, None of all else."""
    state: dict[str, Any] = {}
    for flat, path in described.paths.items():
        inner = state
        for key in path[:-1]:
            inner = inner.setdefault(key, {}) if isinstance(inner, dict) else inner
        if not isinstance(inner, dict) or path[-1] in inner:
            raise CheckpointError(f"{source}: {flat!r} stands where another tensor does.")
        inner[path[-1]] = flat
    for path in described.objects:
        inner = state
        for key in path[:-1]:
            inner = inner.setdefault(key, {}) if isinstance(inner, dict) else inner
        if isinstance(inner, dict):
            inner.setdefault(path[-1], None)
    return state


def _weights_of(state: Mapping[str, Any], source: str, ema: bool | None) -> tuple[dict[str, str], Weights]:
    """Return name to flat name of the model's tensors in a state that may hold more, and where they stand."""
    while True:
        state = {key: value for key, value in state.items() if value is not None and not _is_optimizers(key, value)}
        key, inner = next(iter(state.items()), ("", None))
        if len(state) > 1 or key in (*WRAPPERS, *AVERAGED) or not isinstance(inner, Mapping):
            break
        state = inner  # as under the "app" of torch's tutorials
    weights = weights_of(state, source, ema, leaf=str)
    found: dict[str, str] = {}
    for name, flat in _flat(weights.content):
        if not name.endswith("_extra_state") and found.setdefault(name, flat) != flat:
            raise CheckpointError(f"{source}: two tensors are called {name!r}.")
    return found, weights


def _flat(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def _is_optimizers(key: str, value: Any) -> bool:
    """Whether a part of a state is an optimizer's; a tensor that is merely called so may be a weight."""
    if not isinstance(value, Mapping):
        return False
    parts = {inner.partition(".")[0] for inner in value}
    return _OPTIMIZER.fullmatch(key) is not None or {"param_groups"} <= parts <= _OPTIMIZERS_OWN


def _from_hugging_face_shards(folder: Path, paths: Sequence[Path]) -> Checkpoint:
    headers: dict[str, TensorHeader] = {}
    pieces: dict[str, list[Piece]] = {}
    numbers = {int(path.name.split("-")[1]) for path in paths}
    if absent := set(range(1, max(numbers) + 1)) - numbers:
        raise CheckpointError(f"{folder}: shards are missing: {some_of(f'shard-{each:05}' for each in sorted(absent))}")
    shards = [_from_safetensors(path) for path in paths]
    for shard in shards:
        offsets = _offsets_in(shard)
        for name, header in shard.headers.items():
            piece = Piece(offsets[name], header.shape, partial(shard.read, name), shard.source)
            pieces.setdefault(name, []).append(piece)
    for name, parts in pieces.items():
        pieces[name] = parts = list({(part.offsets, part.sizes): part for part in parts}.values())
        kinds = {shard.headers[name].dtype for shard in shards if name in shard.headers}
        shape = tuple(max(ends) for ends in zip(*(_ends(part) for part in parts), strict=True))
        headers[name] = TensorHeader(shape, next(iter(kinds)))
        if len(kinds) > 1 or not is_whole(shape, [(part.offsets, part.sizes) for part in parts]):
            raise CheckpointError(f"{folder}: the pieces that are stored do not make up the whole of {some_of([name])}")
    inputs = [file for shard in shards for file in shard.inputs]
    reader = PiecesReader(headers, pieces)
    format = "torch.distributed"
    return Checkpoint(str(folder), headers, reader, folder=folder.absolute(), format=format, inputs=inputs)


def _ends(piece: Piece) -> tuple[int, ...]:
    return tuple(start + size for start, size in zip(piece.offsets, piece.sizes, strict=True))


def _offsets_in(shard: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return tensor name to where in the whole the part that a file has begins."""
    try:
        about = parse_json(shard.metadata[_OFFSETS], _OFFSETS)
        found = {name: tuple(about[name]["saved_offsets"]) for name in shard.names}
        if not all(type(each) is int and each >= 0 for offsets in found.values() for each in offsets):
            raise ValueError("an offset that is none")
        if any(len(found[name]) != len(header.shape) for name, header in shard.headers.items()):
            raise ValueError("offsets of other dimensions than the tensors")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{shard.source}: does not say, by {_OFFSETS}, which parts of the tensors it holds ({error!r})."
        ) from error
    return found
