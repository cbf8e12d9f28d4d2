"""The orchestrator: prune the task vectors, let a rule merge them, add the result to the base."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.distributed import ALONE, Ranks, divide
from lwptv_lightning.layer_scaling import tensor_factors
from lwptv_lightning.layers import Layers, layers_from_names
from lwptv_lightning.pruned_task_vectors import ElementPrunedTaskVectors, LayerPrunedTaskVectors, PrunedTaskVectors
from lwptv_lightning.pruning import LayerMask, keep_most_salient
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import require_known
from lwptv_lightning.rules import DataStatistics, MergeContext
from lwptv_lightning.rules._ops import per_row
from lwptv_lightning.saliency import LayerTable, score_layers
from lwptv_lightning.statistics import LayerStatistics, collect_statistics, merged_layers
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


def merge(
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
) -> dict[str, Tensor]:
    """Merge task vectors into one model.

    Args:
        vectors: The task vectors.
        recipe: Rule, scale and pruning.
        layers: From `trace_layers`; needed only where layers are pruned, and made from the tensors' names when not
            given.
        device: Where to compute, and where the result is; the CPU by default.
        mask: A mask to use instead of the one that the recipe asks for.
        statistics: What was collected on data, task to tensor name to tensor, for the rules that need it.
        task: The task whose own model is wanted, for rules that make one for each task.
        dtype: What to compute in, ``torch.float32`` or ``torch.float64``.
        ranks: The processes that divide the work among them, which must all make this call, with the same arguments.

    Returns:
        Every tensor of the base by name, in the base's dtype: merged where it is to be merged, else a copy of the
        base's. Where every task is pruned the tensor equals the base's bit for bit, whatever the rule.

    Raises:
        ValueError: Layers and task vectors do not fit, the dtype is neither of the two, the rule needs statistics
            and there are none, or it makes no model for each task.
        CheckpointError: A weight is NaN or infinite.

    Example:
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.tensor([1.0, 2.0])}})
        >>> merge(vectors, MergeRecipe(scale=0.5))
        {'w': tensor([0.5000, 1.0000])}
    """
    merged = dict(
        iter_merged(
            vectors, recipe, layers, device, mask=mask, statistics=statistics, task=task, dtype=dtype, ranks=ranks
        )
    )
    return {name: merged[name] for name in vectors.headers}


def iter_merged(
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
) -> Iterator[tuple[str, Tensor]]:
    """Yield what `merge` returns one tensor at a time, merged tensors first, in layer order.

    Several processes each merge their own tensors first, and hand them on one by one then.

    Args, Raises: See `merge`.

    Yields:
        Name and tensor.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, not {dtype}.")
    _check_request(vectors, recipe, statistics, task)
    if mask is not None and recipe.elements is not None:
        raise ValueError("mask=... prunes whole layers; it cannot stand beside the recipe's elements.")
    if mask is None and recipe.prunes_layers:
        mask = plan_pruning(vectors, recipe, layers, device, ranks=ranks).mask
    pruned = _prune(vectors, recipe, layers, mask, device, dtype)
    running_statistics = batch_norm_statistics(pruned.names)
    merged_names = set(pruned.names)
    rest = [(name,) for name in vectors.headers if name not in merged_names]
    owner = divide([*pruned.groups, *rest], vectors.headers, ranks.size)
    pruned.share = ranks.share(owner)
    with ranks.sharing_errors():
        combiner = _Combiner(recipe, pruned, statistics, task)
        scaled_layers = layers_for(vectors, recipe, layers) if recipe.needs_layers else None
        factors = tensor_factors(recipe.layer_scaling, pruned.names, scaled_layers, combiner.published_alpha)

    def result(name: str) -> Tensor:
        base, merged = vectors.base(name), combiner.combine(name) if name in merged_names else None
        if merged is None:
            return base.to(device, copy=True)
        if name in running_statistics:
            # A mean of running statistics stays one: no scale or rule may make a variance negative.
            average = base.to(device, dtype, copy=True).add_(pruned.stack(name).mean(0))
            return (average.clamp_(min=0) if name.endswith("running_var") else average).to(base.dtype)
        total = base.to(device, dtype, copy=True).add_(merged, alpha=recipe.effective_scale * factors[name])
        return total.to(base.dtype)

    yield from ranks.compute_each(owner, result, vectors.headers, device)


def batch_norm_statistics(names: Iterable[str]) -> set[str]:
    """Return the running means and variances of batch normalisation among the names of tensors.

    They are no weights: `merge` averages them over the tasks, whatever the rule and its scale, a pruned task counting
    with the base's. `lwptv_lightning.callbacks.RecalibrateBatchNorm` measures them anew on data.

    Args:
        names: State-dict names.

    Returns:
        The names that end in ``running_mean`` or ``running_var`` and have the other beside them.

    Example:
        >>> sorted(batch_norm_statistics(["bn.weight", "bn.running_mean", "bn.running_var", "running_mean"]))
        ['bn.running_mean', 'bn.running_var']
    """
    known = set(names)
    return {
        name
        for name in known
        for own, other in (("running_mean", "running_var"), ("running_var", "running_mean"))
        if name.rpartition(".")[2] == own and name.removesuffix(own) + other in known
    }


class _Combiner:
    """Applies a recipe's rule to one tensor after the other, after the rule's survey of all of them."""

    def __init__(
        self, recipe: MergeRecipe, pruned: PrunedTaskVectors, statistics: DataStatistics | None, task: str | None
    ) -> None:
        self._rule = recipe.rule
        self._pruned = pruned
        self._on_parts = recipe.prune_on == "parts"
        # The rule makes its parts of the whole task vectors; the mask acts on the parts.
        self._seen = (
            PrunedTaskVectors(pruned.vectors, pruned.names, pruned.device, pruned.dtype) if self._on_parts else pruned
        )
        self._seen.share = pruned.share
        self._statistics = statistics
        self._task = task
        self._survey = recipe.rule.survey(self._seen, statistics)

    def combine(self, name: str) -> Tensor | None:
        """Return the merged task vector of one tensor, or None where every task is pruned."""
        kept = self._pruned.kept(name)
        if not kept.any():
            return None
        tasks = self._pruned.tasks
        context = MergeContext(name, tasks, self._survey, _stacked(self._statistics, tasks, name), self._task)
        tau = self._seen.stack(name)
        if not self._on_parts:
            return self._rule.combine(tau, context)
        parts = self._rule.parts(tau, context)
        return torch.where(per_row(kept, parts).bool(), parts, 0).sum(0)

    def published_alpha(self) -> float:
        """Return LiNeS' coefficient of the first block, ``(|sum_t tau_t|_1 / |merged|_1) / T``; 1 for a zero model."""

        def magnitudes(name: str) -> tuple[float, float]:
            if (merged := self.combine(name)) is None:
                return 0.0, 0.0
            summed = self._pruned.stack(name).sum(0)
            return float(summed.abs().sum(dtype=torch.float64)), float(merged.abs().sum(dtype=torch.float64))

        found = self._pruned.share.each(self._pruned.names, magnitudes).values()
        summed, combined = (sum(column) for column in zip(*found, strict=True))
        return summed / combined / len(self._pruned.tasks) if combined else 1.0


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


def _stacked(statistics: DataStatistics | None, tasks: tuple[str, ...], name: str) -> Tensor | None:
    """Return a tensor's statistics of all tasks, ``(T, ...)``, or None where a task has none.

    Statistics of a layer's inputs may stand under the name of its module or of its weight.
    """
    for key in (name, name.removesuffix(".weight")):
        if statistics is not None and all(key in statistics[task] for task in tasks):
            return torch.stack([statistics[task][key] for task in tasks])
    return None


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
