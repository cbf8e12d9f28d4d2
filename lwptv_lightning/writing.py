"""Write merged weights to safetensors; a killed run leaves no half file under the final name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from lwptv_lightning.layers import Layers
from lwptv_lightning.merging import merge
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.task_vectors import TaskVectors


def save_merged(
    vectors: TaskVectors,
    recipe: MergeRecipe,
    path: str | Path,
    layers: Layers | None = None,
    device: str | None = None,
) -> Path:
    """Merge and write the result, with the recipe in the file's metadata.

    Args:
        vectors: The task vectors.
        recipe: Rule, scale and pruning.
        path: Where to write, a ``.safetensors`` file; its folder is made where it does not exist.
        layers: From `trace_layers`; by default made from the tensors' names.
        device: Where to compute.

    Returns:
        The path.

    Raises:
        ValueError: The path does not end in ``.safetensors``.
    """
    require_safetensors_path(path)
    return write_safetensors(merge(vectors, recipe, layers, device), path, metadata_of(vectors, recipe))


def require_safetensors_path(path: str | Path) -> None:
    """Raise unless a path ends in ``.safetensors``."""
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"the file to write must end in .safetensors, not {str(path)!r}.")


def metadata_of(vectors: TaskVectors, recipe: MergeRecipe) -> dict[str, str]:
    """Return what a merged file says of itself: the recipe as JSON and the tasks."""
    return {"format": "pt", "lwptv_recipe": recipe.to_json(), "lwptv_tasks": ",".join(vectors.tasks)}


def write_safetensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> Path:
    """Write tensors under a temporary name in the same folder, then rename.

    Returns:
        The final path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Tied tensors share memory, which the format does not allow.
        separate = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(separate, temporary, metadata=dict(metadata))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
