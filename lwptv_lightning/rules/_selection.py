"""Which elements of a task vector stay: trims over the whole model, random drops, consensus between tasks.

Shapes: T tasks; ``tau`` is a stack of task vectors ``(T, *shape)``. These functions are what several rules share;
the operations on single stacks that they are made of stand in ``_ops``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import eq, gt

import torch
from torch import Tensor

from lwptv_lightning.pruned_task_vectors import PrunedTaskVectors
from lwptv_lightning.rules._draws import random_keep
from lwptv_lightning.rules._masks import compare, count_true, positions
from lwptv_lightning.rules._ops import as_rows, combine_agreeing, elect_signs, tall_masks, trim_
from lwptv_lightning.rules._order_statistics import Transform, count_elements, kth_smallest_magnitude, ranked_values
from lwptv_lightning.stacks import Block, sum_tasks


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


def smallest_kept(elements: int, density: float) -> int:
    """Return the rank, from the smallest, of the least element that a trim keeps.

    A trim to a fraction ``density`` of d elements keeps all that are at least as large as the
    ``d - int(d * density)``-th smallest, so ``int(d * density) + 1`` of them and whatever ties with the last, as the
    authors' code of TIES does. A density of 1 keeps everything.

    Example:
        >>> smallest_kept(10, 0.2), smallest_kept(10, 1.0)
        (8, 1)
    """
    return max(elements - int(elements * density), 1)


def trim_thresholds(vectors: PrunedTaskVectors, density: float, transform: Transform | None = None) -> Tensor:
    """Return the magnitude that an element needs to stay, for each task over the whole model, ``(T,)``."""
    if density == 1:
        return torch.zeros(len(vectors.tasks), dtype=vectors.dtype)
    return kth_smallest_magnitude(vectors, smallest_kept(count_elements(vectors), density), transform)


def survey_trim(vectors: PrunedTaskVectors, density: float, transform: Transform | None = None) -> TrimSurvey:
    """Find each task's threshold over the whole model, then the majority of the elected signs.

    Args:
        vectors: What to stream over.
        density: The fraction to keep, in (0, 1].
        transform: Gives what is trimmed instead of the task vectors themselves.
    """
    thresholds = trim_thresholds(vectors, density, transform)

    def vote(block: Block) -> Tensor:
        tau = block.tau if transform is None else transform(block)
        return sum_tasks(trim_(tau, thresholds)).sign_().sum().double()

    majority = float(sum(vectors.sum_blocks(vote).values()))
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


def drop_at_random_(
    tau: Tensor, probability: float | Tensor, seed: int, tasks: Sequence[str], name: str, start: int = 0
) -> Tensor:
    """Keep each element with a given probability, and divide it by that; drop the others, in place.

    The draw of an element depends on nothing but the seed, the names of its task and tensor, and its position.

    Args:
        tau: ``(T, *shape)``.
        probability: To keep an element, in (0, 1]; a number, or ``(T, *shape)``.
        seed: Seeds the draw.
        tasks: The T task names.
        name: The tensor's name.
        start: The position of the first element in the flattened tensor.

    Returns:
        ``tau``.
    """
    rows = as_rows(tau)
    given = probability if isinstance(probability, float) else as_rows(probability).cpu()
    rows.mul_(random_keep(rows.shape[1], given, seed, tasks, name, start).to(tau))
    return tau.div_(probability)


def keep_middle_(tau: Tensor, density: float, outliers: float = 0.0) -> Tensor:
    """Zero, in each row, the largest and the smallest magnitudes, in place.

    Of n elements ``int(n * density)`` stay. The ``int(n * outliers)`` largest go, or fewer where no smaller one is
    left to drop in their place. Of equal magnitudes the first rank lower.

    Example:
        >>> keep_middle_(torch.tensor([[1.0, 4.0, 3.0, -2.0]]), density=0.5, outliers=0.25).tolist()
        [[0.0, 0.0, 3.0, -2.0]]
    """
    rows = as_rows(tau)
    count = rows.shape[1]
    kept = int(density * count)
    smallest = max(count - kept - int(outliers * count), 0)
    for row in rows:
        above_smallest, above_kept = _above(row.abs(), [smallest, smallest + kept])
        row.mul_((above_smallest ^ above_kept).to(row.dtype))
    return tau


def keep_largest_(tau: Tensor, density: float) -> Tensor:
    """Zero all but the ``int(n * density)`` largest magnitudes of each row, in place; of equal ones the first stay.

    Example:
        >>> keep_largest_(torch.tensor([[1.0, -3.0, 3.0]]), 0.5).tolist()
        [[0.0, -3.0, 0.0]]
    """
    for row in as_rows(tau):
        # Turned round, the first of equal ones rank higher.
        (above,) = _above(row.abs().flip(0), [len(row) - int(len(row) * density)])
        row.mul_(above.flip(0).to(row.dtype))
    return tau


def _above(values: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """Mark what ranks above the k smallest of some values, ``(n,)``, for several k; the first of equals rank lower."""
    limits = iter(ranked_values(values, [k for k in ranks if k]))
    masks = []
    for k in ranks:
        if k == 0:
            masks.append(torch.ones_like(values, dtype=torch.bool))
            continue
        limit = next(limits)
        above, ties = compare(gt, values, limit), positions(compare(eq, values, limit))
        smaller = len(values) - int(count_true(above[None])) - len(ties)
        above[ties[k - smaller :]] = True
        masks.append(above)
    return masks


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
    matters = sum_tasks(tall_masks(tau, merged, tall_lambda))
    return torch.ge(matters, min_tasks, out=matters).mul_(merged)
