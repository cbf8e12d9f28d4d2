"""Open one checkpoint lazily, whatever its format; pickled code is never run.

A `Checkpoint` knows the shape and dtype of every tensor from the file's header and reads a tensor only when asked.
Files are memory-mapped, and reopened by path in another process.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

CheckpointSource: TypeAlias = "str | Path | Mapping[str, Tensor] | nn.Module | Checkpoint"
"""What can be opened: a file or folder, a state dict, a module, or a checkpoint that is open already."""

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_FOREIGN_CLASS = re.compile(r"GLOBAL \S|must be imported")
"""What torch says of a pickle that names a class or function outside its list of harmless ones."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not hold what it should."""


@dataclass(frozen=True)
class TensorHeader:
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> TensorHeader:
        """Describe a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype)


class TensorReader(Protocol):
    """Reads tensors of one checkpoint by the names they have there."""

    def read(self, name: str) -> Tensor:
        """Return a CPU tensor, mapped from the file where the format allows; not to be written to."""
        ...


class Checkpoint:
    """Named tensors of one model, read on demand.

    Args:
        source: What it was opened from, for messages.
        headers: Name to shape and dtype.
        reader: Reads a tensor by its name in the file.
        stored_names: Name to name in the file, where the two differ.
        metadata: What the file says of itself.
        is_lightning: Whether Lightning wrote it, so that names carry the prefix of an attribute.
    """

    def __init__(
        self,
        source: str,
        headers: Mapping[str, TensorHeader],
        reader: TensorReader,
        *,
        stored_names: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        is_lightning: bool = False,
    ) -> None:
        self.source = source
        self.headers = dict(headers)
        self.metadata = dict(metadata or {})
        self.is_lightning = is_lightning
        self._reader = reader
        self._stored_names = dict(stored_names or {})

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in the order of the file."""
        return tuple(self.headers)

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU, in the dtype of the file; it must not be written to."""
        return self._reader.read(self._stored_names.get(name, name))

    def without_prefix(self, prefix: str) -> Checkpoint:
        """Return the part whose names start with ``prefix``, named without it.

        Raises:
            CheckpointError: No name starts with ``prefix``.
        """
        stored = {name.removeprefix(prefix): name for name in self.names if name.startswith(prefix)}
        if not stored:
            raise CheckpointError(f"{self.source}: no tensor starts with prefix={prefix!r}. {some_of(self.names)}")
        return Checkpoint(
            self.source,
            {name: self.headers[old] for name, old in stored.items()},
            self._reader,
            stored_names={name: self._stored_names.get(old, old) for name, old in stored.items()},
            metadata=self.metadata,
            is_lightning=self.is_lightning,
        )

    def __repr__(self) -> str:
        return f"Checkpoint({self.source!r}, {len(self.headers)} tensors)"


def open_checkpoint(source: CheckpointSource, prefix: str | None = None) -> Checkpoint:
    """Open a checkpoint of any supported format without reading its tensors.

    Args:
        source: A ``.safetensors`` file; a folder or ``*.index.json`` of sharded safetensors; a file of
            ``torch.save`` (read with ``weights_only=True``), among them Lightning's ``.ckpt``; a state dict; a module.
            A state dict or module is copied, so that training it or installing weights into it changes nothing here.
        prefix: What the names of the wanted tensors start with, to be stripped, such as ``"model."``. By default a
            Lightning checkpoint with a single top-level attribute loses that prefix, and other names stay as they are.

    Returns:
        The open checkpoint.

    Raises:
        FileNotFoundError: There is no such file or folder.
        CheckpointError: The format is not supported, the file is damaged, or it holds pickled objects.
        TypeError: ``source`` is none of the above.

    Example:
        >>> checkpoint = open_checkpoint({"weight": torch.ones(2, 3)})
        >>> checkpoint.headers["weight"].shape, checkpoint.read("weight").sum().item()
        ((2, 3), 6.0)
    """
    if isinstance(source, Checkpoint):
        checkpoint = source
    elif isinstance(source, nn.Module):
        checkpoint = _from_state_dict(source.state_dict(), type(source).__name__)
    elif isinstance(source, Mapping):
        checkpoint = _from_state_dict(source, "state dict")
    elif isinstance(source, str | Path):
        checkpoint = _from_path(Path(source).expanduser())
    else:
        raise TypeError(f"a checkpoint is a path, a state dict or a module, not {type(source).__name__}.")
    if prefix is not None:
        return checkpoint.without_prefix(prefix) if prefix else checkpoint
    if checkpoint.is_lightning:
        heads = {name.partition(".")[0] + "." for name in checkpoint.names}
        if len(heads) == 1 and all("." in name for name in checkpoint.names):
            return checkpoint.without_prefix(heads.pop())
    return checkpoint


def align_prefix(checkpoint: Checkpoint, names: Iterable[str]) -> Checkpoint:
    """Strip the prefix under which a checkpoint holds the tensors called ``names`` elsewhere.

    Args:
        checkpoint: Possibly a whole LightningModule, with the wanted model under one attribute.
        names: The model's own names.

    Returns:
        The checkpoint itself where some name is known already or no prefix leads to one, else the part under the
        prefix that covers most names.

    Raises:
        CheckpointError: Two prefixes cover equally many names.

    Example:
        >>> wrapped = open_checkpoint({"net.w": torch.ones(1), "net.b": torch.ones(1), "loss.k": torch.ones(1)})
        >>> align_prefix(wrapped, ["w", "b"]).names
        ('w', 'b')
    """
    wanted = set(names)
    if wanted.intersection(checkpoint.names):
        return checkpoint
    covered: Counter[str] = Counter()
    for stored in checkpoint.names:
        parts = stored.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in wanted:
                covered[".".join(parts[:cut]) + "."] += 1
    if not covered:
        return checkpoint
    (prefix, most), *others = covered.most_common()
    rivals = [other for other, count in others if count == most]
    if rivals:
        raise CheckpointError(
            f"{checkpoint.source}: the model's tensors stand under several prefixes, "
            f"{', '.join(map(repr, sorted([prefix, *rivals])))}; name one with prefix=..."
        )
    return checkpoint.without_prefix(prefix)


def _from_path(path: Path) -> Checkpoint:
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {str(path)!r}.")
    if path.is_dir():
        return _from_path(_main_file(path))
    if path.name.endswith(".index.json"):
        return _from_index(path)
    if path.suffix == ".safetensors":
        return _from_safetensors(str(path), [path])
    return _from_torch_file(path)


def _main_file(folder: Path) -> Path:
    for pattern in ("*.safetensors.index.json", "*.safetensors"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise CheckpointError(f"{folder}: several checkpoints ({', '.join(p.name for p in found)}); name one.")
    raise CheckpointError(f"{folder}: no *.safetensors and no *.safetensors.index.json in this folder.")


def _from_index(path: Path) -> Checkpoint:
    try:
        weight_map: dict[str, str] = json.loads(path.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not an index of sharded safetensors ({error!r}).") from error
    shards = [path.parent / name for name in dict.fromkeys(weight_map.values())]
    absent = [shard.name for shard in shards if not shard.exists()]
    if absent:
        raise CheckpointError(f"{path}: shards named in the index are missing: {', '.join(absent)}.")
    checkpoint = _from_safetensors(str(path), shards)
    unmatched = set(weight_map).symmetric_difference(checkpoint.names)
    if unmatched:
        raise CheckpointError(f"{path}: index and shards disagree on {some_of(sorted(unmatched))}")
    return checkpoint


class _SafetensorsReader:
    """Reads from memory-mapped safetensors files, which are opened again in another process."""

    def __init__(self, file_of: Mapping[str, Path]) -> None:
        self._file_of = dict(file_of)
        self._handles: dict[Path, Any] = {}

    def read(self, name: str) -> Tensor:
        path = self._file_of[name]
        if path not in self._handles:
            self._handles[path] = safe_open(path, framework="pt")
        tensor: Tensor = self._handles[path].get_tensor(name)
        return tensor

    def __getstate__(self) -> dict[str, Any]:
        return {"_file_of": self._file_of, "_handles": {}}


def _from_safetensors(source: str, files: list[Path]) -> Checkpoint:
    headers: dict[str, TensorHeader] = {}
    file_of: dict[str, Path] = {}
    metadata: dict[str, str] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as handle:
                metadata |= handle.metadata() or {}
                for name in handle.offset_keys():
                    view = handle.get_slice(name)
                    headers[name] = TensorHeader(tuple(view.get_shape()), _dtype(path, name, view.get_dtype()))
                    file_of[name] = path.absolute()
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a readable safetensors file ({error}).") from error
    return Checkpoint(source, headers, _SafetensorsReader(file_of), metadata=metadata)


def _dtype(path: Path, name: str, code: str) -> torch.dtype:
    if code not in _SAFETENSORS_DTYPES:
        raise CheckpointError(f"{path}: tensor {name!r} has the unsupported dtype {code}.")
    return _SAFETENSORS_DTYPES[code]


class _StateDictReader:
    """Reads from tensors in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


class _TorchFileReader:
    """Reads from a mapped ``torch.save`` file, which is loaded again by path in another process."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self._path = path.absolute()
        self._tensors: dict[str, Tensor] | None = dict(tensors)

    def read(self, name: str) -> Tensor:
        if self._tensors is None:
            self._tensors = _tensors_of(_load(self._path), str(self._path))
        return self._tensors[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_tensors": None}


def _from_state_dict(state: Mapping[str, Any], source: str) -> Checkpoint:
    tensors = {name: value.detach().cpu().clone() for name, value in _tensors_of(state, source).items()}
    return Checkpoint(source, _headers(tensors), _StateDictReader(tensors))


def _from_torch_file(path: Path) -> Checkpoint:
    content = _load(path)
    tensors = _tensors_of(content, str(path))
    is_lightning = "pytorch-lightning_version" in content
    return Checkpoint(str(path), _headers(tensors), _TorchFileReader(path, tensors), is_lightning=is_lightning)


def _load(path: Path) -> Mapping[str, Any]:
    try:
        # Files in the format from before torch 1.6 are no zip archives and cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file makes the unpickler fail in any way whatever
        if isinstance(error, pickle.UnpicklingError) and _FOREIGN_CLASS.search(str(error)):
            raise CheckpointError(
                f"{path}: holds pickled Python objects, which are never unpickled here because that can run code. "
                "Where you trust the file, load it yourself and store the weights alone: "
                "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')."
            ) from error
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        raise CheckpointError(
            f"{path}: not a readable checkpoint of torch.save ({type(error).__name__}: {reason})."
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a state dict.")
    return content


def _tensors_of(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of the one wrapped inside a training checkpoint."""
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return _tensors_of(content[key], f"{source}[{key!r}]")
    entries = {name: value for name, value in content.items() if not str(name).endswith("_extra_state")}
    strangers = [name for name, value in entries.items() if not isinstance(value, Tensor)]
    if strangers:
        raise CheckpointError(f"{source}: expected a state dict of tensors, but these are none: {some_of(strangers)}")
    return entries


def _headers(tensors: Mapping[str, Tensor]) -> dict[str, TensorHeader]:
    return {name: TensorHeader.of(tensor) for name, tensor in tensors.items()}


def some_of(names: Iterable[object], most: int = 8) -> str:
    """List the first names, and say how many more there are."""
    listed = [str(name) for name in names]
    more = f", and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more + "."
