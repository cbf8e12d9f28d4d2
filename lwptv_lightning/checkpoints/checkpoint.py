"""A checkpoint: named tensors of one model, whose shapes and dtypes are known, and compared, before one is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lwptv_lightning.checkpoints.model_config import ModelConfig
from lwptv_lightning.files import InputFile
from lwptv_lightning.registry import matcher, printable, printable_name, require_known, shown

_AT_ONCE = 1 << 18
"""Elements of a tensor that are compared at a time."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not hold what it should.

    Args:
        message: What is wrong; names in it may hold any characters, and are shown as text.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclass(frozen=True)
class TensorHeader:
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> TensorHeader:
        """Describe a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype)

    @classmethod
    def of_all(cls, tensors: Mapping[str, Tensor]) -> dict[str, TensorHeader]:
        """Describe named tensors."""
        return {name: cls.of(tensor) for name, tensor in tensors.items()}

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes that the elements take."""
        return self.numel * self.dtype.itemsize


class TensorReader(Protocol):
    """Reads tensors of one checkpoint by the names they have there.

    One that knows differences from the base, which a sum with the base would round, has ``read_for_difference`` too;
    one that opens files on its way has ``inputs``.
    """

    def read(self, name: str, /) -> Tensor:
        """Return a CPU tensor, mapped from the file where the format allows; not to be written to."""


@dataclass(frozen=True)
class FunctionReader:
    """Reads by a function of the name, which must be picklable."""

    read: Callable[[str], Tensor]


class Checkpoint:
    """Named tensors of one model, read on demand.

    A checkpoint is itself a reader, so that one can be made of another; nothing inherits it.

    Args:
        source: What it was opened from, for messages alone.
        headers: Name to shape and dtype.
        reader: Reads a tensor by its name in the file.
        stored_names: Name to name in the file, where the two differ.
        metadata: What the file says of itself.
        folder: Where the file stands, with the configuration beside it; None in memory.
        format: What kind of file it is, in a word or two.
        inputs: The files that it reads from, as they were when it was opened.
    """

    def __init__(
        self,
        source: str,
        headers: Mapping[str, TensorHeader],
        reader: TensorReader,
        *,
        stored_names: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        folder: Path | None = None,
        format: str = "in memory",
        inputs: Sequence[InputFile] = (),
    ) -> None:
        self.source = source
        self.headers = dict(headers)
        self.metadata = dict(metadata or {})
        self.folder = folder
        self.format = format
        self.inputs = tuple(inputs)
        self.foreign: tuple[str, ...] = ()
        """Tensors that are differences from other weights than those of the base that they were added to."""
        self.is_sum = False
        """Whether it is a base and what a file calls a task vector, added."""
        self.averaged: bool | None = None
        """Of a file with averaged (EMA) and last weights, whether these are the averaged ones; None of other files."""
        self.dequantized: tuple[str, ...] = ()
        """Tensors, by their names when it was opened, that the file holds quantized and that are read as float32."""
        self.stored_headers: Mapping[str, TensorHeader] = dict(headers)
        """Shapes and dtypes by the names in the file, whatever was renamed or converted since."""
        self.model_config: ModelConfig | None = None
        """How a library builds the module whose names these are, where a module of it was given."""
        self._reader = reader
        self._stored_names = dict(stored_names or {})

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in the order of the file."""
        return tuple(self.headers)

    def stored_name(self, name: str) -> str:
        """Return the name that a tensor has in the file."""
        return self._stored_names.get(name, name)

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU, in the dtype of the file; it must not be written to.

        Raises:
            UnknownNameError: There is no such tensor.
        """
        require_known("tensor", name, self.headers)
        return self._reader.read(self._stored_names.get(name, name))

    def require_unchanged(self) -> None:
        """Raise a `CheckpointError` where a file was changed since it was opened, whose tensors were read by then."""
        for file in self.every_input:
            file.require_unchanged()

    @property
    def every_input(self) -> tuple[InputFile, ...]:
        """The files that it reads from, also those that its reader came upon later."""
        return (*self.inputs, *getattr(self._reader, "inputs", ()))

    def read_for_difference(self, name: str) -> tuple[Tensor, bool]:
        """Return a tensor, and whether it is a difference from the base already; neither is to be written to."""
        read: Any = getattr(self._reader, "read_for_difference", None)
        return (self.read(name), False) if read is None else read(self._stored_names.get(name, name))

    def differences(self, name: str, base: Checkpoint) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield parts of a base's flattened tensor, and this checkpoint's minus them, both in float64.

        Of complex numbers these are the real and imaginary parts, one after the other.
        """
        weights, (values, is_difference) = base.read(name).reshape(-1), self.read_for_difference(name)
        weights, values = _as_real(weights), _as_real(values.reshape(-1))
        for start in range(0, max(len(weights), 1), _AT_ONCE):
            part = weights[start : start + _AT_ONCE].double()
            difference = torch.empty_like(part)
            write_difference(values[start : start + _AT_ONCE], is_difference, part, difference)
            yield part, difference

    def without_prefix(self, prefix: str) -> Checkpoint:
        """Return the part whose names start with ``prefix``, named without it; a `CheckpointError` if none does."""
        stored = {name.removeprefix(prefix): name for name in self.names if name.startswith(prefix)}
        if not stored:
            raise CheckpointError(f"{self.source}: no tensor starts with prefix={shown(prefix)}. {some_of(self.names)}")
        return self.renamed(stored)

    def renamed(self, old_names: Mapping[str, str]) -> Checkpoint:
        """Return a checkpoint of some tensors under new names, each mapped to the name here."""
        stored_names = {name: self._stored_names.get(old, old) for name, old in old_names.items()}
        headers = {name: self.headers[old] for name, old in old_names.items()}
        return self.with_tensors(headers, self._reader, stored_names)

    def with_tensors(
        self, headers: Mapping[str, TensorHeader], reader: TensorReader, stored_names: Mapping[str, str] | None = None
    ) -> Checkpoint:
        """Return a checkpoint of the same origin with other tensors; see `Checkpoint` for the arguments."""
        made = copy(self)
        made.headers, made._reader, made._stored_names = dict(headers), reader, dict(stored_names or {})
        return made

    def of_model(self, config: ModelConfig | None) -> Checkpoint:
        """Return the same checkpoint under the names of a module that a library builds so."""
        made = copy(self)
        made.model_config = config
        return made

    def __repr__(self) -> str:
        return f"Checkpoint({self.source!r}, {len(self.headers)} tensors)"


def _as_real(values: Tensor) -> Tensor:
    return torch.view_as_real(values).reshape(-1) if values.is_complex() else values


def write_difference(values: Tensor, is_difference: bool, base: Tensor, out: Tensor) -> None:
    """Write what `Checkpoint.read_for_difference` gave, minus ``base``, in its dtype and on its device, to ``out``."""
    if is_difference:
        out.copy_(values)
    else:
        torch.sub(values.to(base.device, base.dtype), base, out=out)


def holding(checkpoint: Checkpoint, names: Iterable[str], place: Callable[[Tensor], Tensor]) -> Checkpoint:
    """Return a checkpoint with copies of some tensors held; the others are read from it when asked for."""
    held = {}
    for name in names:
        tensor, is_difference = checkpoint.read_for_difference(name)
        held[name] = (place(tensor), is_difference)
    made = checkpoint.with_tensors(checkpoint.headers, _HeldReader(checkpoint, held))
    checkpoint.require_unchanged()
    made.inputs = ()  # the reader knows those that are still needed
    return made


@dataclass(frozen=True)
class _HeldReader:
    """Reads held tensors; others, and whole weights of those that are held as differences, from a checkpoint."""

    checkpoint: Checkpoint
    held: Mapping[str, tuple[Tensor, bool]]

    @property
    def inputs(self) -> tuple[InputFile, ...]:
        return () if self.held.keys() >= self.checkpoint.headers.keys() else self.checkpoint.inputs

    def read(self, name: str) -> Tensor:
        tensor, is_difference = self.held.get(name, (None, True))
        return self.checkpoint.read(name) if tensor is None or is_difference else tensor

    def read_for_difference(self, name: str) -> tuple[Tensor, bool]:
        return self.held[name] if name in self.held else self.checkpoint.read_for_difference(name)


@dataclass(frozen=True)
class HeaderComparison:
    """Names of tensors, in the order of their checkpoint.

    Attributes:
        matched: In both, of one shape and of one kind: floating, complex or neither.
        missing: Only in the base.
        extra: Only in the other.
        reshaped: In both, of different shapes.
        other_kind: In both, of one shape, but floating, or complex, in one alone.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    reshaped: tuple[str, ...]
    other_kind: tuple[str, ...]


def compare_headers(
    base: Mapping[str, TensorHeader], other: Mapping[str, TensorHeader], ignored: Collection[str] = ()
) -> HeaderComparison:
    """Compare names, shapes and kinds of two checkpoints' tensors, but for names that a glob of ``ignored`` matches."""
    found: dict[str, list[str]] = {"matched": [], "missing": [], "extra": [], "reshaped": [], "other_kind": []}
    is_ignored = matcher(ignored)
    for name in dict.fromkeys((*base, *other)):
        if not is_ignored(name):
            found[_fit(base.get(name), other.get(name))].append(name)
    return HeaderComparison(**{fit: tuple(names) for fit, names in found.items()})


def _fit(ours: TensorHeader | None, theirs: TensorHeader | None) -> str:
    if ours is None or theirs is None:
        return "missing" if theirs is None else "extra"
    if ours.shape != theirs.shape:
        return "reshaped"
    kinds = {(header.dtype.is_floating_point, header.dtype.is_complex) for header in (ours, theirs)}
    return "matched" if len(kinds) == 1 else "other_kind"


def some_of(names: Iterable[object], most: int = 8) -> str:
    """List the first names, and say how many more there are."""
    every = list(names)
    more = f", and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(map(printable_name, every[:most])) + more + "."
