"""Which elements of a task vector stay: trims, random drops, consensus between tasks; ``tau`` is ``(T, *shape)``."""

from collections.abc import Sequence
from operator import eq, gt

import torch
from torch import Tensor

from lwptv_lightning.functional.draws import random_keep
from lwptv_lightning.functional.formula import noted
from lwptv_lightning.functional.masks import compare, count_true, positions, tall_masks
from lwptv_lightning.functional.ranked import ranked_values
from lwptv_lightning.functional.sums import as_rows, per_row, sum_tasks


@noted()
def drop_at_random_(
    tau: Tensor, probability: float | Tensor, seed: int, tasks: Sequence[str], name: str, start: int = 0
) -> Tensor:
    """Keep each element with a probability in (0, 1], a number or ``(T, *shape)``, and divide it by that, in place.

    The others become 0. The draw is that of `random_keep`, which explains the other arguments.
    """
    rows = as_rows(tau)
    given = as_rows(probability) if isinstance(probability, Tensor) else probability
    rows.mul_(random_keep(rows.shape[1], given, seed, tasks, name, start, like=tau))
    return tau.div_(probability)


@noted()
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


@noted()
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


@noted(tasks=0)
def keep_consensus(tau: Tensor, merged: Tensor, tall_lambda: float, min_tasks: int) -> Tensor:
    """Zero what matters to fewer than ``min_tasks`` tasks of a merged task vector, ``(*shape)``; see `tall_masks`."""
    return consensus_mask(tau, merged, tall_lambda, min_tasks).mul_(merged)


def consensus_mask(tau: Tensor, merged: Tensor, tall_lambda: float, min_tasks: int) -> Tensor:
    """Return 1 for what matters to ``min_tasks`` tasks or more, else 0, ``(*shape)``; see `keep_consensus`."""
    matters = sum_tasks(tall_masks(tau, merged, tall_lambda))
    return torch.ge(matters, min_tasks, out=matters)


@noted()
def trim_(tau: Tensor, thresholds: Tensor) -> Tensor:
    """Zero what is smaller in magnitude than its row's threshold, in place.

    Example:
        >>> trim_(torch.tensor([[1.0, -3.0], [4.0, 2.0]]), torch.tensor([2.0, 3.0])).tolist()
        [[0.0, -3.0], [4.0, 0.0]]
    """
    magnitudes = tau.abs()
    return tau.mul_(torch.ge(magnitudes, per_row(thresholds, tau), out=magnitudes))
