"""`Merge`: all that is asked for, as one object; nothing is read before its plan is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from lwptv_lightning.engine import DataStatistics, Execution, Ranks
from lwptv_lightning.functional import require_usable
from lwptv_lightning.layers import Layers
from lwptv_lightning.merging.data import plain_data_statistics
from lwptv_lightning.merging.plan import MergePlan
from lwptv_lightning.merging.planning import make_plan
from lwptv_lightning.merging.prune import PruningPlan, prune_layers
from lwptv_lightning.recipe import MergeRecipe, make_recipe
from lwptv_lightning.registry import nearest, require_kind, shown
from lwptv_lightning.saliency import LayerMask, LayerStatistics, LayerTable
from lwptv_lightning.task_vectors import TaskVectors


class SharedOptions(TypedDict, total=False):
    """What everything that merges takes besides task vectors, recipe, layers and device.

    Attributes:
        mask: A mask to use instead of the one that the recipe asks for.
        scores: ``(T, L)``: a saliency that takes the place of the recipe's score, such as a learnt one.
        statistics: Statistics of the same vectors and layers that are at hand: no weight is read again for scores. What
            was collected on data may be given under this name too, as once.
        data: What was collected on data, task to tensor name to tensor, for the rules that need it.
        dtype: As the recipe's; what to compute in.
        execution: Where and how to compute; a device and the two options that follow go before what it says.
        ranks: The processes that divide the work among them, which must all make this call, with the same arguments.
        max_memory: What the merge may hold in memory besides the result and the mapped files, as `Execution` has it.
    """

    mask: LayerMask | None
    scores: LayerTable | None
    statistics: LayerStatistics | DataStatistics | None
    data: DataStatistics | None
    dtype: torch.dtype | str | None
    execution: Execution | None
    ranks: Ranks | None
    max_memory: int | str | None


class MergeOptions(SharedOptions, total=False):
    """What functions that merge take besides.

    Attributes:
        task: As the recipe's; the task whose own model is wanted.
    """

    task: str | None


def require_options(taker: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse what is no option of merging, when ``taker`` is given it rather than when merging begins."""
    known = tuple(MergeOptions.__annotations__)
    for name in options:
        if name not in known:
            raise TypeError(
                f"{taker.__name__} has no argument {name!r}, and merging no such option."
                f"{nearest(name, (*signature(taker).parameters, *known))} Options of merging: {', '.join(known)}."
            )


@dataclass(frozen=True)
class Merge:
    """A merge that is asked for.

    Args:
        vectors: The task vectors.
        recipe: Rule, scale and pruning.
        layers: From `trace_layers`; needed only where layers are pruned, and made from the tensors' names by default.
        mask, scores, statistics, data: As in `MergeOptions`.

    Example:
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.tensor([1.0, 2.0])}})
        >>> dict(Merge(vectors, MergeRecipe(scale=0.5)).plan().tensors())
        {'w': tensor([0.5000, 1.0000])}
    """

    vectors: TaskVectors
    recipe: MergeRecipe
    layers: Layers | None = None
    mask: LayerMask | None = None
    scores: LayerTable | None = None
    statistics: LayerStatistics | None = None
    data: DataStatistics | None = None

    def __post_init__(self) -> None:
        require_kind("vectors", self.vectors, TaskVectors, "TaskVectors")
        object.__setattr__(self, "recipe", make_recipe(self.recipe))
        require_kind("layers", self.layers, Layers | None, "Layers, from trace_layers or layers_from_names")
        require_kind("mask", self.mask, LayerMask | None, "a LayerMask")
        require_kind("scores", self.scores, LayerTable | None, "a LayerTable")
        require_kind("statistics", self.statistics, LayerStatistics | None, "LayerStatistics")
        if self.data is not None:
            object.__setattr__(self, "data", plain_data_statistics(self.data))

    @classmethod
    def of(
        cls,
        vectors: TaskVectors,
        recipe: MergeRecipe | str | Mapping[str, Any],
        layers: Layers | None,
        options: Mapping[str, Any],
        taker: Callable[..., Any] | None = None,
    ) -> tuple[Merge, Execution]:
        """Return a merge, and where and how to compute it, from what ``taker``, by default `merge`, is given.

        ``options`` are those of `MergeOptions`, and ``device``; ``None`` stands for one that is not given.
        """
        given = {name: value for name, value in options.items() if value is not None}
        require_options(taker or merge, {name: value for name, value in options.items() if name != "device"})
        if not isinstance(given.get("statistics"), LayerStatistics | None):
            if "data" in given:
                raise TypeError("statistics=... and data=... both are what was collected on data; give one of them.")
            given["data"] = given.pop("statistics")
        execution = given.pop("execution", Execution())
        if not isinstance(execution, Execution):
            raise TypeError(f"execution must be an Execution, not {shown(execution)}.")
        computed = {name: given.pop(name) for name in ("device", "ranks", "max_memory") if name in given}
        execution = replace(execution, **computed)
        kept = {name: value for name, value in given.items() if name not in ("dtype", "task")}
        return cls(vectors, make_recipe(recipe, given), layers, **kept), execution

    @property
    def needs_layers(self) -> bool:
        """Whether it matters which tensors form a layer."""
        return self.recipe.needs_layers or self.mask is not None

    def pruned(self, execution: Execution | None = None) -> Merge:
        """Return the merge with the mask that its recipe asks for, where that prunes layers and none is given."""
        if self.mask is not None or not (self.recipe.prunes_layers or self.recipe.coefficients):
            return self
        return replace(self, mask=prune_layers(self, execution or Execution(), scored=False).mask)

    def plan(self, execution: Execution | None = None) -> MergePlan:
        """Decide all that comes before the first tensor: what is pruned, and what the rule knows of the whole model.

        Args:
            execution: Where and how to compute; by default on the CPU.

        Raises:
            ValueError: Layers and task vectors do not fit, or the rule needs data and there is none.
            UnknownNameError: The recipe's task is none of the task vectors'.
            CheckpointError: A weight is NaN or infinite, or what a file calls a task vector is whole weights.
            MemoryLimitError: A tensor does not fit into the execution's memory.
        """
        execution = Execution() if execution is None else execution
        require_kind("execution", execution, Execution, "an Execution")
        require_usable("device", execution.device)
        return make_plan(self, execution)


def merge(
    vectors: TaskVectors,
    recipe: MergeRecipe | str | Mapping[str, Any],
    layers: Layers | None = None,
    device: torch.device | str | None = None,
    **options: Unpack[MergeOptions],
) -> dict[str, Tensor]:
    """Merge task vectors into one model.

    Args:
        vectors: The task vectors.
        recipe: Rule, scale and pruning; the name of a rule will do.
        layers: From `trace_layers`; needed only where layers are pruned, and made from the tensors' names when not
            given.
        device: Where to compute, and where the result is; the CPU by default.
        options: Those of `MergeOptions`.

    Returns:
        Every tensor of the base by name, in the base's dtype: merged where it is to be merged, else a copy of the
        base's. Where every task is pruned the tensor equals the base's bit for bit, whatever the rule.

    Raises:
        ValueError, CheckpointError, MemoryLimitError: As in `Merge.plan`.

    Warns:
        UserWarning: A task's weights hardly belong to the base, by `TaskVectors.doubts`.

    Example:
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.tensor([1.0, 2.0])}})
        >>> merge(vectors, MergeRecipe(scale=0.5))
        {'w': tensor([0.5000, 1.0000])}
    """
    asked, execution = Merge.of(vectors, recipe, layers, {"device": device, **options})
    merged = dict(asked.plan(execution).tensors())
    return {name: merged[name] for name in vectors.headers}


def plan_pruning(
    vectors: TaskVectors,
    recipe: MergeRecipe | str | Mapping[str, Any],
    layers: Layers | None = None,
    device: torch.device | str | None = None,
    **options: Unpack[MergeOptions],
) -> PruningPlan:
    """Score the layers of every task vector and choose which to keep.

    Args:
        vectors: The task vectors.
        recipe: Names the score and how many layers to prune.
        layers: From `trace_layers`; by default made from the tensors' names.
        device: Where statistics are computed.
        options: Those of `MergeOptions`.

    Returns:
        Layers, scores and mask.

    Raises:
        ValueError: ``layers`` has another granularity than the recipe, or misses a merged tensor; or scores or
            statistics are of other tasks or layers.
    """
    asked, execution = Merge.of(vectors, recipe, layers, {"device": device, **options}, plan_pruning)
    return prune_layers(asked, execution)
