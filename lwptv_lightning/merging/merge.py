"""The merged model as a state dict."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lwptv_lightning.engine import ALONE, Ranks
from lwptv_lightning.layers import Layers
from lwptv_lightning.merging.plan import prepare_merge
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.rules import DataStatistics
from lwptv_lightning.saliency import (
    LayerMask,
)
from lwptv_lightning.task_vectors import TaskVectors


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
    max_memory: int | str | None = None,
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
        max_memory: What the merge may hold in memory besides the result and the mapped files, in bytes or as
            ``"512MB"``. Rules that work on blocks need little; the limit concerns those that see whole tensors.

    Returns:
        Every tensor of the base by name, in the base's dtype: merged where it is to be merged, else a copy of the
        base's. Where every task is pruned the tensor equals the base's bit for bit, whatever the rule.

    Raises:
        ValueError: Layers and task vectors do not fit, the dtype is neither of the two, the rule needs statistics
            and there are none, or it makes no model for each task.
        CheckpointError: A weight is NaN or infinite.
        MemoryLimitError: A tensor does not fit into ``max_memory``.

    Example:
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.tensor([1.0, 2.0])}})
        >>> merge(vectors, MergeRecipe(scale=0.5))
        {'w': tensor([0.5000, 1.0000])}
    """
    merged = dict(
        iter_merged(
            vectors,
            recipe,
            layers,
            device,
            mask=mask,
            statistics=statistics,
            task=task,
            dtype=dtype,
            ranks=ranks,
            max_memory=max_memory,
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
    max_memory: int | str | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield what `merge` returns one tensor at a time, merged tensors first, in layer order.

    Several processes each merge their own tensors first, and hand them on one by one then.

    Args, Raises: See `merge`.

    Yields:
        Name and tensor.
    """
    merge = prepare_merge(
        vectors,
        recipe,
        layers,
        device,
        mask=mask,
        statistics=statistics,
        task=task,
        dtype=dtype,
        ranks=ranks,
        max_memory=max_memory,
    )
    yield from ranks.spread(merge.owner, merge.tensors(), vectors.headers, device)
