"""The merged model as a file or a library's folder, written as it is made."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from lwptv_lightning.layers import Layers
from lwptv_lightning.merging.card import card_beside
from lwptv_lightning.merging.merge import Merge, MergeOptions
from lwptv_lightning.merging.output import Beside, Output, base_classifier, plan_output
from lwptv_lightning.merging.plan import MergePlan
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.task_vectors import TaskVectors, checkpoints_of


def save_merged(
    vectors: TaskVectors,
    recipe: MergeRecipe | str | Mapping[str, Any],
    path: str | Path,
    layers: Layers | None = None,
    device: torch.device | str | None = None,
    *,
    format: str | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = True,
    keep_classifier: bool = False,
    **options: Unpack[MergeOptions],
) -> Path:
    """Merge and write the result as it is made, with the recipe in the file's metadata.

    A path that ends in ``.safetensors`` is a file. Any other is a folder, of what the base came as: one that timm,
    transformers or open_clip loads, with the configuration, processor and tokenizer files that stand beside the base,
    or of the weights alone where the base is a file by itself.

    The merged model is never in memory as a whole. Of several processes the first one writes. The model appears in one
    step when it is whole and on the disk; whatever fails, a model that was there before stays as it was.

    Args:
        vectors: The task vectors.
        recipe: Rule, scale and pruning; the name of a rule will do.
        path: Where to write, a ``.safetensors`` file or a folder; what it stands in is made where it does not exist.
        layers: From `trace_layers`; by default made from the tensors' names.
        device: Where to compute.
        format: The kind of folder: ``"timm"``, ``"transformers"``, ``"open_clip"``, ``"safetensors"`` (the weights
            alone), or ``"dcp"``, which `torch.distributed.checkpoint` loads into ``model.state_dict()``, sharded or
            not. By default what the base came as: with ``model=...`` of timm or transformers in
            `TaskVectors.open` a folder of that library, since the tensors have its names.
        max_shard_size: Bytes, or text such as ``"5GB"``, the default. A larger model is written in shards of at most
            that size, or of one tensor, with an index beside them as transformers names both:
            ``merged-00001-of-00002.safetensors`` and ``merged.safetensors.index.json`` for ``merged.safetensors``.
            Shards that replace a model's have names of their own, which end in ``.1a2b3c4d.safetensors``, so that the
            index leads to all of the old ones or all of the new ones. timm and open_clip read one file alone.
        overwrite: Whether to replace a model that is there. Without it, of several that write at once one succeeds. A
            folder goes with all that is in it, and is not replaced where that is more than a model.
        keep_classifier: Whether the result has the base's classifier where the tasks have their own, of other shapes,
            so that it is no part of the merge. Without it the file says what it leaves out, and the folder's
            configuration is of a model without a classifier.
        options: Those of `MergeOptions`.

    Returns:
        What to open: the path, or that of the index.

    Raises:
        ValueError: The path has another format's ending, a size is none, a library would not load the folder, or the
            format cannot hold a tensor or its name; besides, as in `merge`.
        FileExistsError: There is a model, and ``overwrite`` is false.
        OSError: Nothing can be written there, or the disk is full.

    Example:
        >>> import tempfile
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_merged(vectors, MergeRecipe(), f"{folder}/merged.safetensors").name
        'merged.safetensors'
    """
    merge, execution = Merge.of(vectors, recipe, layers, {"device": device, **options}, save_merged)
    ranks, left_out = execution.ranks, () if keep_classifier else base_classifier(vectors)
    given: dict[str, Any] = {"format": format, "max_shard_size": max_shard_size, "overwrite": overwrite}
    output = None
    with ranks.sharing_errors():
        if ranks.rank == 0:
            base, *_ = inputs = checkpoints_of(vectors)
            output = plan_output(path, vectors.headers, base, left_out=left_out, inputs=inputs, **given)
    plan = merge.plan(execution)
    plan = plan.only(name for name in vectors.headers if name not in left_out) if left_out else plan
    pieces = plan.pieces()
    if ranks.size > 1:
        pieces = ((name, slice(0, None), tensor.reshape(-1)) for name, tensor in plan.tensors())
    with ranks.sharing_errors():
        try:
            final = None if output is None else _written(output, plan, pieces, card_beside(output, inputs))
            deque(pieces, maxlen=0)  # where another process writes
        except Exception:
            if ranks.size > 1:
                deque(pieces, maxlen=0)  # the other processes wait for what is made here
            raise
    return Path(ranks.exchange(final)[0] or path)


def _written(output: Output, plan: MergePlan, pieces: Iterator[tuple[str, slice, Tensor]], card: Beside) -> Path:
    made = plan.provenance(hashed=False)
    with output.writing(made, [card]) as writer:
        for name, elements, values in pieces:
            writer.write(name, values, elements.start)
        # Only now, while what was written goes to the disk and is read back.
        base, tasks = plan.vectors.fingerprints()
        writer.describe(output.described(replace(made, base=base, tasks=tasks)).to_metadata())
        plan.require_unchanged()
    return output.final(writer)
