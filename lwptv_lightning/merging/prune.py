"""Which layers a merge prunes of which task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lwptv_lightning.engine import Execution
from lwptv_lightning.layers import Layers, layers_from_names
from lwptv_lightning.merging.coefficients import coefficients_table, layer_coefficients, without_zeros
from lwptv_lightning.merging.ties import further_names, patterns_of_layers
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import natural_order
from lwptv_lightning.saliency import (
    LayerMask,
    LayerTable,
    collect_statistics,
    keep_most_salient,
    merged_layers,
    score_layers,
)
from lwptv_lightning.task_vectors import TaskVectors

if TYPE_CHECKING:
    from lwptv_lightning.merging.merge import Merge


@dataclass(frozen=True)
class PruningPlan:
    """Which layers a recipe prunes of which task, and the scores that say so.

    Attributes:
        layers: The layers that hold merged tensors, in execution order.
        scores: ``(T, L)``, higher is kept: the recipe's coefficients, where these alone say what is pruned; ``None``
            where all is pruned whatever the scores, so that no plan of a merge needs them. `plan_pruning` always has
            them.
        mask: ``(T, L)``.
    """

    layers: Layers
    scores: LayerTable | None
    mask: LayerMask


def plan_layers(vectors: TaskVectors, recipe: MergeRecipe, layers: Layers | None) -> Layers:
    """Return the layers of the merged tensors, from their names in natural order where no layers are given.

    Raises:
        ValueError: The layers have another granularity than the recipe, or miss a merged tensor.
    """
    if layers is None:
        return layers_from_names(natural_order(vectors.names), granularity=recipe.granularity)
    if layers.granularity != recipe.granularity:
        raise ValueError(f"layers are of granularity {layers.granularity!r}, the recipe's is {recipe.granularity!r}.")
    return merged_layers(vectors, layers)


def prune_layers(merge: Merge, execution: Execution, *, scored: bool = True) -> PruningPlan:
    """Score the layers of every task vector and choose which to keep; see `plan_pruning`.

    Where it need not be ``scored``, nothing is read for scores that make no difference, because all is pruned.
    """
    layers, scores = plan_layers(merge.vectors, merge.recipe, merge.layers), merge.scores
    coefficients = layer_coefficients(merge.vectors, merge.recipe, layers)
    if coefficients is not None and not merge.recipe.prunes_layers and scores is None and merge.statistics is None:
        # They alone say what is pruned.
        scores = coefficients_table(coefficients, merge.vectors, layers)
    if scores is None and merge.statistics is None and not scored:
        mask = _mask(merge, layers, _no_scores(merge.vectors, layers))
        mask = without_zeros(mask, coefficients, layers)
        if not mask.kept.any():
            return PruningPlan(layers, None, mask)
    if scores is None:
        options: dict[str, Any] = {"execution": execution, "dtype": merge.recipe.torch_dtype}
        statistics = merge.statistics or collect_statistics(merge.vectors, layers, **options)
        scores = score_layers(statistics, merge.recipe.score, seed=merge.recipe.seed)
        merge.vectors.require_unchanged()
    scores = scores.in_order_of(layers.names)
    for what, given, own in (("task", scores.tasks, merge.vectors.tasks), ("layer", scores.layers, layers.names)):
        if given != own:
            raise ValueError(f"scores and statistics must be of the {what}s {list(own)}, not of {list(given)}.")
    mask = merge.mask or _mask(merge, layers, scores)
    return PruningPlan(layers, scores, without_zeros(mask, coefficients, layers))


def _mask(merge: Merge, layers: Layers, scores: LayerTable) -> LayerMask:
    recipe, further = merge.recipe, further_names(merge.vectors, layers)
    keep, prune = (patterns_of_layers(patterns, layers, further) for patterns in (recipe.keep, recipe.prune))
    return keep_most_salient(scores, recipe.ratio, ranking=recipe.ranking, count=recipe.count, keep=keep, prune=prune)


def _no_scores(vectors: TaskVectors, layers: Layers) -> LayerTable:
    """Return zeros: of equal scores all are pruned only where all are pruned of any."""
    return coefficients_table(torch.zeros(len(vectors.tasks), len(layers)), vectors, layers)
