"""Stream weights to safetensors, in one file or in shards; a killed run leaves no half file under a final name."""

from __future__ import annotations

from pathlib import Path

from lwptv_lightning.checkpoints import SafetensorsWriter, require_safetensors_path
from lwptv_lightning.layers import Layers
from lwptv_lightning.merging.plan import prepare_merge
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import parse_bytes
from lwptv_lightning.task_vectors import TaskVectors

_SHARD_SIZE = "5GB"


def save_merged(
    vectors: TaskVectors,
    recipe: MergeRecipe,
    path: str | Path,
    layers: Layers | None = None,
    device: str | None = None,
    *,
    max_memory: int | str | None = None,
    max_shard_size: int | str = _SHARD_SIZE,
) -> Path:
    """Merge and write the result as it is made, with the recipe in the file's metadata.

    The merged model is never in memory as a whole.

    Args:
        vectors: The task vectors.
        recipe: Rule, scale and pruning.
        path: Where to write, a ``.safetensors`` file; its folder is made where it does not exist.
        layers: From `trace_layers`; by default made from the tensors' names.
        device: Where to compute.
        max_memory: What the merge may hold in memory besides the mapped files; see `lwptv_lightning.merging.merge`.
        max_shard_size: Bytes, or text such as ``"5GB"``. A larger model is written in shards of at most that size, or
            of one tensor, with an index beside them as transformers names both:
            ``merged-00001-of-00002.safetensors`` and ``merged.safetensors.index.json`` for ``merged.safetensors``.

    Returns:
        What to open: the path, or that of the index.

    Raises:
        ValueError: The path does not end in ``.safetensors``, or a size is none.
        MemoryLimitError: A tensor does not fit into ``max_memory``.

    Example:
        >>> import torch
        >>> import tempfile
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_merged(vectors, MergeRecipe(), f"{folder}/merged.safetensors").name
        'merged.safetensors'
    """
    require_safetensors_path(path)
    shard_size = parse_bytes("max_shard_size", max_shard_size)
    merge = prepare_merge(vectors, recipe, layers, device, max_memory=max_memory)
    with SafetensorsWriter(path, vectors.headers, metadata_of(vectors, recipe), shard_size) as writer:
        for name, elements, values in merge.pieces():
            writer.write(name, values, elements.start)
    return writer.final


def metadata_of(vectors: TaskVectors, recipe: MergeRecipe) -> dict[str, str]:
    """Return what a merged file says of itself: the recipe as JSON and the tasks."""
    return {"format": "pt", "lwptv_recipe": recipe.to_json(), "lwptv_tasks": ",".join(vectors.tasks)}
