"""Open one checkpoint lazily, whatever its format; pickled code is never run.

A `Checkpoint` knows the shape and dtype of every tensor from the file's header and reads a tensor only when asked.
Files are memory-mapped, and reopened by path in another process.
"""

from __future__ import annotations

import json
import math
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

from lwptv_lightning.hub import fetch, is_hub_name

CheckpointSource: TypeAlias = "str | Path | Mapping[str, Tensor] | nn.Module | Checkpoint"
"""What can be opened: a file or folder, a state dict, a module, or a checkpoint that is open already."""

SAFETENSORS_DTYPES = {
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
"""The format's names of dtypes."""
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Where training code keeps averaged weights beside the last ones; timm's comes first."""
_LAST_BESIDE_AVERAGED = "current_model_state"
"""Where Lightning's WeightAveraging keeps the last weights, when it puts the averaged ones into ``state_dict``."""
_MAIN_FILES = (
    "task_vector.safetensors",
    "adapter_model.safetensors",
    "*.safetensors.index.json",
    "model.safetensors",
    "*.safetensors",
    "adapter_model.bin",
    "pytorch_model.bin",
)
"""What to open in a folder, most wanted first."""
_FOREIGN_CODE = re.compile(r"GLOBAL \S|must be imported|TorchScript")
"""What torch says of a file with code: a class or function outside its list of harmless ones, or a script."""


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

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes that the elements take."""
        return self.numel * self.dtype.itemsize


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

    def read_for_difference(self, name: str) -> tuple[Tensor, bool]:
        """Return a tensor, and whether it is a difference from the base already; neither is to be written to."""
        return self.read(name), False

    def subtract(self, name: str, base: Tensor, out: Tensor) -> None:
        """Write this checkpoint's tensor minus ``base`` to ``out``, in ``base``'s dtype and on its device."""
        values, is_difference = self.read_for_difference(name)
        if is_difference:
            out.copy_(values)
        else:
            torch.sub(values.to(base.device, base.dtype), base, out=out)

    def without_prefix(self, prefix: str) -> Checkpoint:
        """Return the part whose names start with ``prefix``, named without it.

        Raises:
            CheckpointError: No name starts with ``prefix``.
        """
        stored = {name.removeprefix(prefix): name for name in self.names if name.startswith(prefix)}
        if not stored:
            raise CheckpointError(f"{self.source}: no tensor starts with prefix={prefix!r}. {some_of(self.names)}")
        return self.renamed(stored)

    def renamed(self, old_names: Mapping[str, str]) -> Checkpoint:
        """Return a checkpoint of some tensors under new names.

        Args:
            old_names: New name to the name here.
        """
        return Checkpoint(
            self.source,
            {name: self.headers[old] for name, old in old_names.items()},
            self._reader,
            stored_names={name: self._stored_names.get(old, old) for name, old in old_names.items()},
            metadata=self.metadata,
            is_lightning=self.is_lightning,
        )

    def __repr__(self) -> str:
        return f"Checkpoint({self.source!r}, {len(self.headers)} tensors)"


class LoadedCheckpoint(Checkpoint):
    """A checkpoint whose tensors are held on a device.

    Args:
        source: The checkpoint.
        names: The tensors to hold; the others are read from ``source`` when asked for.
        device: Where to hold them.
    """

    def __init__(self, source: Checkpoint, names: Iterable[str], device: torch.device | str) -> None:
        super().__init__(source.source, source.headers, source, metadata=source.metadata)
        self._source = source
        self._held: dict[str, tuple[Tensor, bool]] = {}
        for name in names:
            tensor, is_difference = source.read_for_difference(name)
            self._held[name] = (tensor.to(device, copy=True), is_difference)

    def read(self, name: str) -> Tensor:
        """Return the held tensor; one that is held as a difference is read again."""
        tensor, is_difference = self._held.get(name, (None, True))
        return self._source.read(name) if tensor is None or is_difference else tensor

    def read_for_difference(self, name: str) -> tuple[Tensor, bool]:
        """Return the held tensor, and whether it is a difference."""
        return self._held[name] if name in self._held else self._source.read_for_difference(name)


def open_checkpoint(source: CheckpointSource, prefix: str | None = None, *, ema: bool | None = None) -> Checkpoint:
    """Open a checkpoint of any supported format without reading its tensors.

    Args:
        source: A ``.safetensors`` file; a folder or ``*.index.json`` of sharded safetensors, such as a transformers
            model; a file of ``torch.save`` (read with ``weights_only=True``), among them Lightning's ``.ckpt``; a name
            on the hub, ``"hf-hub:owner/model"``; a state dict; a module. A state dict or module is copied, so that
            training it or installing weights into it changes nothing here.
        prefix: What the names of the wanted tensors start with, to be stripped, such as ``"model."``; ``""`` leaves
            the names as they are. By default a Lightning checkpoint with a single top-level attribute loses that
            prefix, and any checkpoint what `torch.compile` and DistributedDataParallel put into the names.
        ema: For a training checkpoint, whether to take the averaged weights (True) or the last ones (False). By
            default what it holds as its state dict, which are the averaged ones where Lightning's ``WeightAveraging``
            wrote it.

    Returns:
        The open checkpoint.

    Raises:
        FileNotFoundError: There is no such file or folder.
        CheckpointError: The format is not supported, the file is damaged, or it holds pickled objects; or there are
            no averaged weights where ``ema=True`` asks for them.
        TypeError: ``source`` is none of the above.

    Example:
        >>> checkpoint = open_checkpoint({"weight": torch.ones(2, 3)})
        >>> checkpoint.headers["weight"].shape, checkpoint.read("weight").sum().item()
        ((2, 3), 6.0)
    """
    if isinstance(source, Checkpoint):
        checkpoint = source
    elif isinstance(source, nn.Module):
        checkpoint = _from_state_dict(source.state_dict(), type(source).__name__, ema)
    elif isinstance(source, Mapping):
        checkpoint = _from_state_dict(source, "state dict", ema)
    elif isinstance(source, str) and is_hub_name(source):
        checkpoint = _from_path(fetch(source), ema)
    elif isinstance(source, str | Path):
        checkpoint = _from_path(Path(source).expanduser(), ema)
    else:
        raise TypeError(f"a checkpoint is a path, a state dict or a module, not {type(source).__name__}.")
    if prefix is not None:
        return checkpoint.without_prefix(prefix) if prefix else checkpoint
    checkpoint = without_wrappers(checkpoint)
    if checkpoint.is_lightning:
        heads = {name.partition(".")[0] + "." for name in checkpoint.names}
        if len(heads) == 1 and all("." in name for name in checkpoint.names):
            return checkpoint.without_prefix(heads.pop())
    return checkpoint


def without_wrappers(checkpoint: Checkpoint) -> Checkpoint:
    """Take out of the names what `torch.compile` and DistributedDataParallel put into them.

    Args:
        checkpoint: Of a module that may have been wrapped, as a whole or in part.

    Returns:
        The checkpoint without ``_orig_mod`` in any name, and without a first ``module.`` where every name has it.

    Example:
        >>> without_wrappers(open_checkpoint({"module._orig_mod.w": torch.ones(1)}, prefix="")).names
        ('w',)
    """
    old_names = {re.sub(r"(^|(?<=\.))_orig_mod\.", "", name): name for name in checkpoint.names}
    while old_names and all(name.startswith("module.") for name in old_names):
        old_names = {name.removeprefix("module."): old for name, old in old_names.items()}
    return checkpoint if tuple(old_names) == checkpoint.names else checkpoint.renamed(old_names)


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


def _from_path(path: Path, ema: bool | None) -> Checkpoint:
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {str(path)!r}.")
    if path.is_dir():
        return _from_path(_main_file(path), ema)
    if path.suffix in (".json", ".safetensors") and ema:
        raise _no_averaged_weights(path)
    if path.name.endswith(".index.json"):
        return _from_index(path)
    if path.suffix == ".safetensors":
        return _from_safetensors(str(path), [path])
    return _from_torch_file(path, ema)


def _main_file(folder: Path) -> Path:
    for pattern in _MAIN_FILES:
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise CheckpointError(f"{folder}: several checkpoints ({', '.join(p.name for p in found)}); name one.")
    raise CheckpointError(
        f"{folder}: no *.safetensors, *.safetensors.index.json or pytorch_model.bin in this folder; name the file."
    )


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
    if code not in SAFETENSORS_DTYPES:
        raise CheckpointError(f"{path}: tensor {name!r} has the unsupported dtype {code}.")
    return SAFETENSORS_DTYPES[code]


class _StateDictReader:
    """Reads from tensors in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


class _TorchFileReader:
    """Reads from a mapped ``torch.save`` file, which is loaded again by path in another process."""

    def __init__(self, path: Path, ema: bool | None, tensors: Mapping[str, Tensor]) -> None:
        self._path = path.absolute()
        self._ema = ema
        self._tensors: dict[str, Tensor] | None = dict(tensors)

    def read(self, name: str) -> Tensor:
        if self._tensors is None:
            self._tensors = _tensors_of(_load(self._path), str(self._path), self._ema)
        return self._tensors[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_ema": self._ema, "_tensors": None}


def _from_state_dict(state: Mapping[str, Any], source: str, ema: bool | None) -> Checkpoint:
    tensors = {name: value.detach().cpu().clone() for name, value in _tensors_of(state, source, ema).items()}
    return Checkpoint(source, _headers(tensors), _StateDictReader(tensors))


def _from_torch_file(path: Path, ema: bool | None) -> Checkpoint:
    content = _load(path)
    tensors = _tensors_of(content, str(path), ema)
    is_lightning = "pytorch-lightning_version" in content
    reader = _TorchFileReader(path, ema, tensors)
    return Checkpoint(str(path), _headers(tensors), reader, is_lightning=is_lightning)


def _load(path: Path) -> Mapping[str, Any]:
    try:
        # Files in the format from before torch 1.6 are no zip archives and cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file makes the unpickler fail in any way whatever
        if _FOREIGN_CODE.search(str(error)):
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


def _tensors_of(content: Mapping[str, Any], source: str, ema: bool | None = None) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of the one wrapped inside a training checkpoint."""
    for key in _entries(content, source, ema):
        if isinstance(content.get(key), Mapping):
            return _tensors_of(content[key], f"{source}[{key!r}]")
    entries = {name: value for name, value in content.items() if not str(name).endswith("_extra_state")}
    strangers = [name for name, value in entries.items() if not isinstance(value, Tensor)]
    if strangers:
        raise CheckpointError(f"{source}: expected a state dict of tensors, but these are none: {some_of(strangers)}")
    return entries


def _entries(content: Mapping[str, Any], source: str, ema: bool | None) -> tuple[str, ...]:
    """Return where a training checkpoint may hold the wanted weights, most likely first."""
    main_is_averaged = _LAST_BESIDE_AVERAGED in content
    if ema and not main_is_averaged:
        averaged = tuple(key for key in _AVERAGED if isinstance(content.get(key), Mapping))
        if not averaged:
            raise _no_averaged_weights(source)
        return averaged
    return (_LAST_BESIDE_AVERAGED, *_WRAPPERS) if ema is False and main_is_averaged else _WRAPPERS


def _no_averaged_weights(source: object) -> CheckpointError:
    return CheckpointError(
        f"{source}: no averaged (EMA) weights; expected Lightning's WeightAveraging or one of {', '.join(_AVERAGED)}."
    )


def _headers(tensors: Mapping[str, Tensor]) -> dict[str, TensorHeader]:
    return {name: TensorHeader.of(tensor) for name, tensor in tensors.items()}


def some_of(names: Iterable[object], most: int = 8) -> str:
    """List the first names, and say how many more there are."""
    listed = [str(name) for name in names]
    more = f", and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more + "."
