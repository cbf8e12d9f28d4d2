"""Checkpoints that hold differences from a base: task vectors by themselves, as a task beside whole models.

Such a difference is used as it is. Adding it to the base and subtracting that again would round it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from lwptv_lightning.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    FunctionReader,
    TensorHeader,
    compare_headers,
    some_of,
)
from lwptv_lightning.checkpoints.hashing import fingerprint, tensor_fingerprints
from lwptv_lightning.checkpoints.names import match_names
from lwptv_lightning.checkpoints.open import open_checkpoint
from lwptv_lightning.checkpoints.positions import sizes_told
from lwptv_lightning.checkpoints.provenance import Provenance
from lwptv_lightning.files import InputFile
from lwptv_lightning.functional import sum_dtype
from lwptv_lightning.registry import matcher, matches, nearest

BASE_FILE = "base.safetensors"
"""What lies beside a stored task vector: the weights that it was made from."""


def is_task_vector(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint says of itself that it holds a task vector."""
    return Provenance.of(checkpoint).kind == "task_vector"


def add_difference(
    difference: Checkpoint,
    raw_base: Checkpoint,
    base: Checkpoint,
    model: nn.Module | None = None,
    replaced: Checkpoint | None = None,
    ignored: Collection[str] = (),
) -> Checkpoint:
    """Return the fine-tuned model that a difference makes of a base, under the names of ``base``.

    Args:
        difference: Fine-tuned minus base for some tensors, named as in the base or in the base's file.
        raw_base: The base under the names of its file.
        base: The base under the names that are merged.
        model: The module that ``base`` was converted for.
        replaced: Whole tensors that the fine-tuned model has in place of the base's.
        ignored: Globs of tensors that may be of another model than the base, such as a task's own classifier. Those
            that are stand in the result's ``foreign``, and are read as a sum with the base they were made from.
    """
    bases = tuple(dict.fromkeys((base, raw_base)))
    origin = _origin_of(difference, bases)
    for home in bases:
        named = match_names(difference, home.headers)
        compared = compare_headers(home.headers, named.headers, ignored)
        if not compared.extra:
            for name in compared.reshaped:
                told = sizes_told(compared.reshaped, named.headers, home.headers)
                raise CheckpointError(
                    f"{difference.source}: the difference of {name!r} has shape {named.headers[name].shape}, expected "
                    f"{home.headers[name].shape} as in the base.{told}"
                )
            own = named.renamed({name: name for name in _foreign(named, home, origin)})
            is_ignored = matcher(ignored)
            if strangers := [name for name in own.names if not is_ignored(name)]:
                raise CheckpointError(
                    f"{difference.source}: this task vector was made from another base: {len(strangers)} of its "
                    f"{len(named.names)} tensors are differences from other weights than {home.source} has: "
                    f"{some_of(sorted(strangers))} Tensors that are not to be merged go into exclude=(...)."
                )
            named = named.renamed({name: name for name in named.names if name not in own.headers})
            if home is not base:
                if replaced is not None:  # what takes the place of a part of a tensor is a difference of that part
                    replaced, named = _parted(match_names(replaced, home.headers), named, home)
                headers = {**home.headers, **named.headers}
                filled = named.with_tensors(headers, FunctionReader(partial(_read_or_zeros, named, headers)))
                named = match_names(filled, base.headers, model)
            whole = match_names(base.renamed({}) if replaced is None else replaced, base.headers)
            added = {
                name: TensorHeader(head.shape, _dtype_of_sum(base.headers[name].dtype, head.dtype))
                for name, head in named.headers.items()
            }
            added |= {name: TensorHeader(head.shape, torch.float32) for name, head in own.headers.items()}
            made = named.with_tensors({**base.headers, **added, **whole.headers}, _AddedReader(base, named, whole, own))
            made.metadata = {}  # those of the difference would have it added to a base once more
            made.foreign = own.names
            return made
    unknown = [name for name in difference.names if name not in raw_base.headers and not matches(name, ignored)]
    raise CheckpointError(
        f"{difference.source}: the base has no tensor {some_of(unknown)}{nearest(unknown[0], raw_base.names)} "
        f"Expected {raw_base.source} to be the model that was fine-tuned."
    )


def _origin_of(difference: Checkpoint, bases: Sequence[Checkpoint]) -> Mapping[str, str] | None:
    """Return name in the file to fingerprint of what a difference was made from; None where that needs no comparison.

    Raises:
        CheckpointError: It was made from none of the bases, and its file says no more.
    """
    about = Provenance.of(difference)
    if about.base_tensors is not None or about.base is None:
        return about.base_tensors
    # Of earlier versions: the fingerprint of the whole base, which may lie beside the difference.
    if any(fingerprint(home, about.base) == about.base for home in bases):
        return None
    if (own := _base_beside(difference)) is None:
        raise CheckpointError(
            f"{difference.source}: this task vector was made from another base: expected the one with fingerprint "
            f"{about.base[:12]}, {bases[0].source} has {fingerprint(bases[0], about.base)[:12]}."
        )
    return tensor_fingerprints(own)


def _foreign(named: Checkpoint, home: Checkpoint, origin: Mapping[str, str] | None) -> list[str]:
    """Return the tensors of a difference that were made from other weights than ``home`` has."""
    floating = [name for name, header in named.headers.items() if header.dtype.is_floating_point]
    shapes = {name: header.shape for name, header in home.headers.items()}
    fitting = {name: named.stored_name(name) for name in floating if shapes.get(name) == named.headers[name].shape}
    expected = {name: origin[stored] for name, stored in fitting.items() if origin is not None and stored in origin}
    found = tensor_fingerprints(home, expected)
    return [name for name in floating if name not in fitting or found.get(name) != expected.get(name)]


def _base_beside(difference: Checkpoint) -> Checkpoint | None:
    """Return the base that lies beside a task vector, where it is the one that this was made from."""
    path = None if difference.folder is None else difference.folder / BASE_FILE
    if path is None or not path.exists():
        return None
    beside = open_checkpoint(path, prefix="")
    made_from = Provenance.of(difference).base
    return beside if fingerprint(beside, made_from) == made_from else None


@dataclass(frozen=True)
class _AddedReader:
    """Reads a base plus a difference, and the difference unrounded; a tensor that this has not is zero.

    What ``foreign`` holds are differences from another base, which lies beside them.
    """

    base: Checkpoint
    difference: Checkpoint
    replaced: Checkpoint
    foreign: Checkpoint

    def read(self, name: str) -> Tensor:
        values, is_difference = self.read_for_difference(name)
        if not is_difference:
            return values
        base = self.base.read(name)
        if name not in self.difference.headers:
            return base
        dtype = _dtype_of_sum(base.dtype, values.dtype)
        wide = dtype if dtype.is_floating_point else torch.promote_types(dtype, torch.int64)
        return (base.to(wide) + values.to(wide)).to(dtype)

    def read_for_difference(self, name: str) -> tuple[Tensor, bool]:
        if name in self.replaced.headers:
            return self.replaced.read(name), False
        if name in self.foreign.headers:
            return self._read_foreign(name), False
        return _read_or_zeros(self.difference, self.base.headers, name), True

    @property
    def inputs(self) -> tuple[InputFile, ...]:
        """The files of all that is read, those of the origin as soon as it was needed."""
        origin: Checkpoint | None = self.__dict__.get("_origin")
        read = (self.base, self.difference, self.replaced, self.foreign, *([] if origin is None else [origin]))
        return tuple(dict.fromkeys(file for each in read for file in each.inputs))

    @cached_property
    def _origin(self) -> Checkpoint | None:
        """What ``foreign`` holds differences from; found once, as all of it is read to know it."""
        return _base_beside(self.foreign)

    def _read_foreign(self, name: str) -> Tensor:
        own, stored = self._origin, self.foreign.stored_name(name)
        if own is None or stored not in own.headers:
            raise CheckpointError(
                f"{self.foreign.source}: {name!r} is a difference from weights that are not at hand; put the "
                f"{BASE_FILE} that it was made from beside it."
            )
        return own.read(stored).float() + self.foreign.read(name).float()


def _parted(replaced: Checkpoint, difference: Checkpoint, home: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Return what is replaced of no tensor of a base, and a difference with what is replaced of one."""
    shapes = {name: header.shape for name, header in home.headers.items()}
    mine = [name for name, header in replaced.headers.items() if shapes.get(name) == header.shape]
    headers = difference.headers | {name: TensorHeader(shapes[name], torch.float32) for name in mine}
    reader = FunctionReader(partial(_read_parted, difference, replaced.renamed({name: name for name in mine}), home))
    rest = {name: name for name in replaced.names if name not in mine}
    return replaced.renamed(rest), difference.with_tensors(headers, reader)


def _read_parted(difference: Checkpoint, replaced: Checkpoint, home: Checkpoint, name: str) -> Tensor:
    if name in replaced.headers:
        return replaced.read(name).double() - home.read(name).double()
    return difference.read(name)


def _dtype_of_sum(base: torch.dtype, difference: torch.dtype) -> torch.dtype:
    """Return what a base and a difference add up to: counters and masks stay what they are."""
    return sum_dtype(base) if base.is_floating_point or difference.is_floating_point else base


def _read_or_zeros(difference: Checkpoint, headers: Mapping[str, TensorHeader], name: str) -> Tensor:
    """Read a tensor of a difference; one that it has not is zero, of the shape and dtype in ``headers``."""
    if name in difference.headers:
        return difference.read(name)
    return torch.zeros((), dtype=headers[name].dtype).expand(headers[name].shape)
