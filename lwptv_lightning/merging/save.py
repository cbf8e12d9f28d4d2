"""The merged model as a file, written as it is made."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch

from lwptv_lightning.checkpoints import (
    Provenance,
    SafetensorsWriter,
    require_place,
    require_safetensors_path,
    require_storable,
)
from lwptv_lightning.layers import Layers
from lwptv_lightning.merging.merge import Merge, MergeOptions
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import parse_bytes
from lwptv_lightning.task_vectors import TaskVectors


def save_merged(
    vectors: TaskVectors,
    recipe: MergeRecipe | str | Mapping[str, Any],
    path: str | Path,
    layers: Layers | None = None,
    device: torch.device | str | None = None,
    *,
    max_shard_size: int | str = "5GB",
    overwrite: bool = True,
    **options: Unpack[MergeOptions],
) -> Path:
    """Merge and write the result as it is made, with the recipe in the file's metadata.

    The merged model is never in memory as a whole. Of several processes the first one writes. The model appears in one
    step when it is whole and on the disk; whatever fails, a model that was there before stays as it was.

    Args:
        vectors: The task vectors.
        recipe: Rule, scale and pruning; the name of a rule will do.
        path: Where to write, a ``.safetensors`` file; its folder is made where it does not exist.
        layers: From `trace_layers`; by default made from the tensors' names.
        device: Where to compute.
        max_shard_size: Bytes, or text such as ``"5GB"``. A larger model is written in shards of at most that size, or
            of one tensor, with an index beside them as transformers names both:
            ``merged-00001-of-00002.safetensors`` and ``merged.safetensors.index.json`` for ``merged.safetensors``.
            Shards that replace a model's have names of their own, which end in ``.1a2b3c4d.safetensors``, so that the
            index leads to all of the old ones or all of the new ones.
        overwrite: Whether to replace a model that is there. Without it, of several that write at once one succeeds.
        options: Those of `MergeOptions`.

    Returns:
        What to open: the path, or that of the index.

    Raises:
        ValueError: The path does not end in ``.safetensors``, a size is none, or the format cannot hold a tensor or its
            name; besides, as in `merge`.
        FileExistsError: There is a model, and ``overwrite`` is false.
        OSError: Nothing can be written there, or the disk is full.

    Example:
        >>> import tempfile
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_merged(vectors, MergeRecipe(), f"{folder}/merged.safetensors").name
        'merged.safetensors'
    """
    require_safetensors_path(path)
    shard_size = parse_bytes("max_shard_size", max_shard_size)
    merge, execution = Merge.of(vectors, recipe, layers, {"device": device, **options}, save_merged)
    ranks = execution.ranks
    with ranks.sharing_errors():
        require_storable(vectors.headers)
        if ranks.rank == 0:
            require_place(path, overwrite=overwrite)
    plan = merge.plan(execution)
    pieces = plan.pieces()
    if ranks.size > 1:
        pieces = ((name, slice(0, None), tensor.reshape(-1)) for name, tensor in plan.tensors())
    with ranks.sharing_errors():
        made = plan.provenance(hashed=False) if ranks.rank == 0 else Provenance()
        writer = SafetensorsWriter(path, vectors.headers, made.to_metadata(), shard_size, overwrite=overwrite)
        try:
            with writer if ranks.rank == 0 else nullcontext():
                for name, elements, values in pieces:
                    if ranks.rank == 0:
                        writer.write(name, values, elements.start)
                if ranks.rank == 0:  # only now, while what was written goes to the disk and is read back
                    base, tasks = plan.vectors.fingerprints()
                    writer.describe(replace(made, base=base, tasks=tasks).to_metadata())
                    plan.require_unchanged()
        except Exception:
            if ranks.size > 1:
                deque(pieces, maxlen=0)  # the other processes wait for what is made here
            raise
    return writer.final
