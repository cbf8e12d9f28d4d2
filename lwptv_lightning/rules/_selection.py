"""Which elements of a task vector stay: trims over the whole model, random drops, consensus between tasks.

Shapes: T tasks; ``tau`` is a stack of task vectors ``(T, *shape)``. These functions are what several rules share;
the operations on single stacks that they are made of stand in ``_ops``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.pruned_task_vectors import PrunedTaskVectors
from lwptv_lightning.rules._ops import (
    Transform,
    as_rows,
    combine_agreeing,
    elect_signs,
    random_keep,
    rescale_kept,
    tall_masks,
    trim_,
    trim_thresholds,
)


@dataclass(frozen=True)
class TrimSurvey:
    """What TIES knows of the whole model.

    Attributes:
        thresholds: The magnitude an element needs to stay, for each task, ``(T,)``.
        tie: The sign elected where the trimmed task vectors cancel: that of most elected signs, and 0 where these
            cancel too.
    """

    thresholds: Tensor
    tie: float


def survey_trim(vectors: PrunedTaskVectors, density: float, transform: Transform | None = None) -> TrimSurvey:
    """Find each task's threshold over the whole model, then the majority of the elected signs.

    Args:
        vectors: What to stream over.
        density: The fraction to keep, in (0, 1].
        transform: Gives what is trimmed instead of the stacks themselves.
    """
    thresholds = trim_thresholds(vectors, density, transform)

    def votes(name: str) -> float:
        tau = vectors.stack(name)
        tau = tau if transform is None else transform(tau, name)
        return trim_(tau, thresholds).sum(0).sign().sum().item()

    majority = sum(vectors.share.each(vectors.names, votes).values())
    return TrimSurvey(thresholds, float((majority > 0) - (majority < 0)))


def trim_elect_merge_(tau: Tensor, survey: TrimSurvey, reduce: str) -> Tensor:
    """Apply the three steps of TIES to one stack, ``(T, *shape) -> (*shape)``; ``tau`` is written to.

    Example:
        >>> survey = TrimSurvey(torch.tensor([2.0, 3.0]), tie=-1.0)
        >>> trim_elect_merge_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 1.0, -3.0]]), survey, "mean")
        tensor([ 4.,  2., -3.])
    """
    trimmed = trim_(tau, survey.thresholds)
    return combine_agreeing(trimmed, elect_signs(trimmed, survey.tie), reduce)


def drop_at_random(tau: Tensor, probability: float | Tensor, seed: int, tasks: Sequence[str], name: str) -> Tensor:
    """Keep each element with a given probability, and divide it by that; drop the others.

    The draw of an element depends on nothing but the seed and the names of its task and tensor.

    Args:
        tau: ``(T, *shape)``.
        probability: To keep an element, in (0, 1]; a number, or ``(T, *shape)``.
        seed: Seeds the draw.
        tasks: The T task names.
        name: The tensor's name.

    Returns:
        ``(T, *shape)``.
    """
    shape = tuple(tau.shape[1:])
    keep = [
        random_keep(shape, probability if isinstance(probability, float) else probability[row].cpu(), seed, task, name)
        for row, task in enumerate(tasks)
    ]
    return rescale_kept(tau, torch.stack(keep).to(tau.device), probability)


def keep_middle_(tau: Tensor, density: float, outliers: float) -> Tensor:
    """Zero, in each row, the largest and the smallest magnitudes, in place.

    Of n elements ``int(n * density)`` stay. The ``int(n * outliers)`` largest go, or fewer where no smaller one is
    left to drop in their place. Of equal magnitudes the first rank lower.

    Example:
        >>> keep_middle_(torch.tensor([[1.0, -4.0, 3.0, 2.0]]), density=0.5, outliers=0.25)
        tensor([[0., 0., 3., 2.]])
    """
    rows = as_rows(tau)
    count = rows.shape[1]
    kept = int(density * count)
    smallest = max(count - kept - int(outliers * count), 0)
    ascending = rows.abs().argsort(dim=1, stable=True)
    dropped = torch.cat([ascending[:, :smallest], ascending[:, smallest + kept :]], dim=1)
    return rows.scatter_(1, dropped, 0).view(tau.shape)


def keep_consensus(tau: Tensor, merged: Tensor, tall_lambda: float, min_tasks: int) -> Tensor:
    """Zero the weights of a merged task vector that matter to fewer than ``min_tasks`` tasks; see `tall_masks`.

    Args:
        tau: ``(T, *shape)``.
        merged: ``(*shape)``.
        tall_lambda: The threshold of the masks.
        min_tasks: How many tasks a weight must matter to.

    Returns:
        ``(*shape)``.
    """
    return torch.where(tall_masks(tau, merged, tall_lambda).sum(0) >= min_tasks, merged, 0)
