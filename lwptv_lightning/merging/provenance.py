"""What a file of a merged model says of where its weights come from."""

from __future__ import annotations

from lwptv_lightning.checkpoints import Provenance
from lwptv_lightning.engine import DataStatistics
from lwptv_lightning.layers import Layers
from lwptv_lightning.merging.data import fingerprint_of_data
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.saliency import LayerMask
from lwptv_lightning.task_vectors import TaskVectors


def provenance_of(
    vectors: TaskVectors,
    recipe: MergeRecipe,
    mask: LayerMask | None,
    layers: Layers | None = None,
    data: DataStatistics | None = None,
    known: tuple[str, dict[str, str]] | None = None,
) -> Provenance:
    """Return what a file of a merged model says of itself; see `MergePlan.provenance`."""
    base, tasks = vectors.fingerprints() if known is None else known
    floating = [name for name in vectors.copied if vectors.headers[name].dtype.is_floating_point]
    return Provenance(
        kind="merged",
        base=base,
        tasks=tasks,
        recipe=recipe.to_dict(),
        scale=recipe.effective_scale,
        mask=None if mask is None else {task: [name for name in row if row[name]] for task, row in mask},
        layers=None if layers is None else {layer.name: list(layer.tensors) for layer in layers},
        excluded=list(vectors.excluded),
        roles={"averaged": list(vectors.averaged), "copied": floating, "tied": dict(vectors.tied)},
        data=None if data is None else fingerprint_of_data(data),
        versions=Provenance.current_versions(**_resampling_version(vectors)),
        resized=list(vectors.resized),
    )


def _resampling_version(vectors: TaskVectors) -> dict[str, str]:
    if not vectors.resized:
        return {}
    import timm

    return {"timm": timm.__version__}
