"""The orchestrator: prune the task vectors, let a rule merge them, add the result to the base."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.engine import ALONE, PrunedTaskVectors, Ranks, divide
from lwptv_lightning.layers import Layers, layers_from_names
from lwptv_lightning.merging.combine import Combiner, Piece
from lwptv_lightning.merging.memory import require_memory
from lwptv_lightning.recipe import MergeRecipe, tensor_factors
from lwptv_lightning.registry import require_known
from lwptv_lightning.rules import DataStatistics
from lwptv_lightning.saliency import (
    ElementPrunedTaskVectors,
    LayerMask,
    LayerPrunedTaskVectors,
    LayerStatistics,
    LayerTable,
    collect_statistics,
    keep_most_salient,
    merged_layers,
    score_layers,
)
from lwptv_lightning.task_vectors import TaskVectors


@dataclass(frozen=True)
class PruningPlan:
    """Which layers a recipe prunes of which task, and the scores that say so.

    Attributes:
        layers: The layers that hold merged tensors, in execution order.
        scores: ``(T, L)``, higher is kept.
        mask: ``(T, L)``.
    """

    layers: Layers
    scores: LayerTable
    mask: LayerMask


def plan_pruning(
    vectors: TaskVectors,
    recipe: MergeRecipe,
    layers: Layers | None = None,
    device: torch.device | str | None = None,
    *,
    statistics: LayerStatistics | None = None,
    ranks: Ranks = ALONE,
) -> PruningPlan:
    """Score the layers of every task vector and choose which to keep.

    Args:
        vectors: The task vectors.
        recipe: Names the score and how many layers to prune.
        layers: From `trace_layers`; by default made from the tensors' names.
        device: Where statistics are computed.
        statistics: Statistics of the same vectors and layers, where they are at hand: no weight is read again then.
        ranks: The processes that divide the work among them, which must all make this call, with the same arguments.

    Returns:
        Layers, scores and mask.

    Raises:
        ValueError: ``layers`` has another granularity than the recipe, or misses a merged tensor.
    """
    layers = layers_for(vectors, recipe, layers)
    if statistics is None:
        owner = divide([(name,) for name in layers.tensors], vectors.headers, ranks.size)
        with ranks.sharing_errors():
            statistics = collect_statistics(vectors, layers, device, share=ranks.share(owner))
    scores = score_layers(statistics, recipe.score, seed=recipe.seed)
    mask = keep_most_salient(
        scores, recipe.ratio, ranking=recipe.ranking, count=recipe.count, keep=recipe.keep, prune=recipe.prune
    )
    return PruningPlan(layers, scores, mask)


def layers_for(vectors: TaskVectors, recipe: MergeRecipe, layers: Layers | None) -> Layers:
    """Return the layers of the merged tensors, from their names where no layers are given.

    Raises:
        ValueError: The layers have another granularity than the recipe, or miss a merged tensor.
    """
    if layers is None:
        return layers_from_names(vectors.names, granularity=recipe.granularity)
    if layers.granularity != recipe.granularity:
        raise ValueError(f"layers are of granularity {layers.granularity!r}, the recipe's is {recipe.granularity!r}.")
    return merged_layers(vectors, layers)


def prepare_merge(
    vectors: TaskVectors,
    recipe: MergeRecipe,
    layers: Layers | None = None,
    device: torch.device | str | None = None,
    *,
    mask: LayerMask | None = None,
    statistics: DataStatistics | None = None,
    task: str | None = None,
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = ALONE,
    max_memory: int | str | None = None,
) -> PreparedMerge:
    """Prune, and let the rule survey the whole model: all of a merge that comes before the first tensor.

    Args, Raises: See `merge`.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, not {dtype}.")
    _check_request(vectors, recipe, statistics, task)
    if mask is not None and recipe.elements is not None:
        raise ValueError("mask=... prunes whole layers; it cannot stand beside the recipe's elements.")
    if max_memory is not None:
        # What layers are pruned is not known yet, and pruning only lessens the need.
        require_memory(max_memory, recipe.rule, _prune(vectors, recipe, layers, None, device, dtype))
    if mask is None and recipe.prunes_layers:
        mask = plan_pruning(vectors, recipe, layers, device, ranks=ranks).mask
    pruned = _prune(vectors, recipe, layers, mask, device, dtype)
    merged_names = set(pruned.names)
    rest = [(name,) for name in vectors.headers if name not in merged_names]
    owner = divide([*pruned.groups, *rest], vectors.headers, ranks.size)
    pruned.share = ranks.share(owner)
    with ranks.sharing_errors():
        combiner = Combiner(recipe, pruned, statistics, task)
        scaled_layers = layers_for(vectors, recipe, layers) if recipe.needs_layers else None
        factors = tensor_factors(recipe.layer_scaling, pruned.names, scaled_layers, combiner.published_alpha)
    scales = {name: recipe.effective_scale * factor for name, factor in factors.items()}
    return PreparedMerge(pruned, combiner, scales, owner)


@dataclass(frozen=True)
class PreparedMerge:
    """A merge that is ready to make this process's tensors.

    Attributes:
        pruned: What is merged.
        combiner: Merges it.
        scales: Tensor name to scaling coefficient, for the tensors that are merged.
        owner: Name of every tensor to the rank of its process, in the order in which tensors are made.
    """

    pruned: PrunedTaskVectors
    combiner: Combiner
    scales: Mapping[str, float]
    owner: Mapping[str, int]

    def pieces(self) -> Iterator[tuple[str, slice, Tensor]]:
        """Make the tensors piece by piece.

        Yields:
            A tensor's name, which of its flattened elements, and their values, ``(n,)`` in the base's dtype and not to
            be written to. Pieces of a tensor come one after the other, from the first to the last.
        """
        own = self.pruned.share.own(self.owner)
        for piece in self.combiner.pieces([name for name in own if name in self.scales]):
            yield piece.name, piece.elements, self._added_to_base(piece)
        for name in own:
            if name not in self.scales:
                values = self.pruned.vectors.base(name).reshape(-1)
                yield name, slice(0, len(values)), values

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Make the tensors, on the device on which they are merged.

        Yields:
            Name and tensor.
        """
        headers, device = self.pruned.vectors.headers, self.pruned.device
        for name, pieces in itertools.groupby(self.pieces(), key=lambda piece: piece[0]):
            tensor = torch.empty(headers[name].shape, dtype=headers[name].dtype, device=device)
            for _, elements, values in pieces:
                tensor.view(-1)[elements] = values
            yield name, tensor

    def _added_to_base(self, piece: Piece) -> Tensor:
        if piece.merged is None:
            return piece.base
        # A mean of running statistics stays one: no scale or rule may make a variance negative.
        is_averaged = piece.name in self.combiner.averaged
        scale = 1.0 if is_averaged else self.scales[piece.name]
        total = piece.base.to(piece.merged, copy=True).add_(piece.merged, alpha=scale)
        if is_averaged and piece.name.endswith("running_var"):
            total.clamp_(min=0)
        return total.to(piece.base.dtype)


def _check_request(
    vectors: TaskVectors, recipe: MergeRecipe, statistics: DataStatistics | None, task: str | None
) -> None:
    rule = recipe.rule
    if rule.needs and statistics is None:
        raise ValueError(f"rule {rule.name!r} needs statistics=..., its {rule.needs} collected on each task's data.")
    if statistics is not None and (absent := [name for name in vectors.tasks if name not in statistics]):
        raise ValueError(f"statistics has no entry for task {absent[0]!r}; it has {', '.join(statistics) or 'none'}.")
    if task is not None:
        require_known("task", task, vectors.tasks)
        if not rule.per_task:
            raise ValueError(f"rule {rule.name!r} merges all tasks into one model, so task={task!r} has no meaning.")


def _prune(
    vectors: TaskVectors,
    recipe: MergeRecipe,
    layers: Layers | None,
    mask: LayerMask | None,
    device: torch.device | str | None,
    dtype: torch.dtype,
) -> PrunedTaskVectors:
    if recipe.elements is not None:
        return ElementPrunedTaskVectors(vectors, layers_for(vectors, recipe, layers), recipe.elements, device, dtype)
    if mask is not None:
        return LayerPrunedTaskVectors(vectors, layers_for(vectors, recipe, layers), mask, device, dtype)
    names = None if layers is None else merged_layers(vectors, layers).tensors
    return PrunedTaskVectors(vectors, names, device, dtype)
