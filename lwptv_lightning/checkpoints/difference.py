"""Checkpoints that hold differences from a base: task vectors by themselves, as a task beside whole models.

Such a difference is used as it is. Adding it to the base and subtracting that again would round it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

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
from lwptv_lightning.checkpoints.names import match_names
from lwptv_lightning.checkpoints.provenance import fingerprint
from lwptv_lightning.registry import nearest


def is_task_vector(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint says of itself that it holds a task vector."""
    return checkpoint.metadata.get("lwptv_kind") == "task_vector"


def add_difference(
    difference: Checkpoint,
    raw_base: Checkpoint,
    base: Checkpoint,
    model: nn.Module | None = None,
    replaced: Checkpoint | None = None,
) -> Checkpoint:
    """Return the fine-tuned model that a difference makes of a base, under the names of ``base``.

    Args:
        difference: Fine-tuned minus base for some tensors, named as in the base or in the base's file.
        raw_base: The base under the names of its file.
        base: The base under the names that are merged.
        model: The module that ``base`` was converted for.
        replaced: Whole tensors that the fine-tuned model has in place of the base's.
    """
    bases = tuple(dict.fromkeys((base, raw_base)))
    expected = difference.metadata.get("lwptv_base_fingerprint")
    if expected is not None and not any(fingerprint(home) == expected for home in bases):
        raise CheckpointError(
            f"{difference.source}: this task vector was made from another base: expected the one with fingerprint "
            f"{expected[:12]}, {base.source} has {fingerprint(base)[:12]}."
        )
    for home in bases:
        named = match_names(difference, home.headers)
        compared = compare_headers(home.headers, named.headers)
        if not compared.extra:
            for name in compared.reshaped:
                raise CheckpointError(
                    f"{difference.source}: the difference of {name!r} has shape {named.headers[name].shape}, expected "
                    f"{home.headers[name].shape} as in the base."
                )
            if home is not base:
                headers = {**home.headers, **named.headers}
                filled = named.with_tensors(headers, FunctionReader(partial(_read_or_zeros, named, headers)))
                named = match_names(filled, base.headers, model)
            whole = match_names(base.renamed({}) if replaced is None else replaced, base.headers)
            added = {name: TensorHeader(head.shape, torch.float32) for name, head in named.headers.items()}
            made = named.with_tensors({**base.headers, **added, **whole.headers}, _AddedReader(base, named, whole))
            made.metadata = {}  # those of the difference would have it added to a base once more
            return made
    unknown = [name for name in difference.names if name not in raw_base.headers]
    raise CheckpointError(
        f"{difference.source}: the base has no tensor {some_of(unknown)}{nearest(unknown[0], raw_base.names)} "
        f"Expected {raw_base.source} to be the model that was fine-tuned."
    )


@dataclass(frozen=True)
class _AddedReader:
    """Reads a base plus a difference, and the difference unrounded; a tensor that this has not is zero."""

    base: Checkpoint
    difference: Checkpoint
    replaced: Checkpoint

    def read(self, name: str) -> Tensor:
        values, is_difference = self.read_for_difference(name)
        if not is_difference:
            return values
        base = self.base.read(name)
        return base.float() + values.float() if name in self.difference.headers else base

    def read_for_difference(self, name: str) -> tuple[Tensor, bool]:
        if name in self.replaced.headers:
            return self.replaced.read(name), False
        return _read_or_zeros(self.difference, self.base.headers, name), True


def _read_or_zeros(difference: Checkpoint, headers: Mapping[str, TensorHeader], name: str) -> Tensor:
    """Read a tensor of a difference; one that it has not is zero, of the shape and dtype in ``headers``."""
    if name in difference.headers:
        return difference.read(name)
    return torch.zeros((), dtype=headers[name].dtype).expand(headers[name].shape)
