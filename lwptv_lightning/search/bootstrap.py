"""Bootstraps over samples, the same for all candidates, and over replicates of a whole experiment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lwptv_lightning.registry import require_kind
from lwptv_lightning.search.compare import SweepResult, weights_over

Replicates: TypeAlias = "SweepResult | Sequence[Replicates]"
"""A result, or several of the same candidates, such as one for each draw of unlabelled images; also several of such."""

_COUNTED_AT_ONCE = 1 << 24
"""How many counts of samples are in memory at once."""


def leaves_of(replicates: Replicates) -> list[SweepResult]:
    """Return the results among replicates, from the first to the last.

    Raises:
        TypeError: There is something else among them.
        ValueError: A sequence is empty.
    """
    if isinstance(replicates, SweepResult):
        return [replicates]
    require_kind("results", replicates, Sequence, "a SweepResult, or a sequence of them")
    if not replicates or isinstance(replicates, str):
        raise ValueError(f"results is {replicates!r}: expected at least one SweepResult.")
    return [leaf for each in replicates for leaf in leaves_of(each)]


def drawn_averages(
    leaves: Sequence[SweepResult],
    names: Sequence[str],
    domains: Sequence[str | Sequence[str]],
    draws: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """Average over domains, for the samples and for draws of as many of them with replacement.

    Samples are drawn once for each loader's name and size, so that in each draw they are the same for all results.

    Args:
        leaves: The results.
        names: R candidates of all of them.
        domains: D domains, as in `SweepResult.difference`.
        draws: How many.
        generator: For the draws.

    Returns:
        For each result ``(D, 1 + draws, R)`` float64, the samples themselves first.
    """
    weights = [[weights_over(leaf.outcomes, domain) for domain in domains] for leaf in leaves]
    rows = [[leaf.names.index(name) for name in names] for leaf in leaves]
    found = [torch.zeros(len(domains), 1 + draws, len(names), dtype=torch.float64) for _ in leaves]
    sets = dict.fromkeys(
        (loader, leaf.outcomes[loader].shape[1])
        for leaf, own in zip(leaves, weights, strict=True)
        for loader in leaf.outcomes
        if any(loader in each for each in own)
    )
    for loader, size in sets:
        if not size:
            raise ValueError(f"loader {loader!r} has no sample, so that nothing can be compared on it.")
        for some, counts in _counts(size, draws, generator):
            for leaf, own, chosen, averages in zip(leaves, weights, rows, found, strict=True):
                outcomes = leaf.outcomes.get(loader)
                if outcomes is None or outcomes.shape[1] != size:
                    continue
                accuracy = (counts @ outcomes[chosen].T.float()).double() / size
                for domain, weight in enumerate(own):
                    averages[domain, some] += accuracy * float(weight.get(loader, 0))
    return found


def _counts(size: int, draws: int, generator: torch.Generator) -> Iterator[tuple[slice, Tensor]]:
    """Yield which draws, and how often each has each sample, ``(n, size)``; whole in float32 up to 16 million."""
    yield slice(0, 1), torch.ones(1, size)
    at_once = max(1, _COUNTED_AT_ONCE // size)
    for first in range(0, draws, at_once):
        some = min(at_once, draws - first)
        samples = torch.randint(size, (some, size), generator=generator)
        yield (
            slice(1 + first, 1 + first + some),
            torch.zeros(some, size).scatter_add_(1, samples, torch.ones(some, size)),
        )


def averaged(replicates: Replicates, values: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Average values over replicates: in the first column over all of them, in the others over a draw of them.

    At each level as many are drawn as there are, with replacement, and for each one drawn those within it anew.

    Args:
        replicates: The results.
        values: For each of them, from the first to the last, ``(K, 1 + draws)``; nan only counts where it is drawn.
        generator: For the draws.

    Returns:
        ``(K, 1 + draws)``.
    """
    columns = values[0].shape[1]
    shares = _shares(replicates, torch.ones(columns, dtype=torch.float64), generator)
    parts = (torch.where(share > 0, own * share, 0) for own, share in zip(values, shares, strict=True))
    return torch.stack(list(parts)).sum(0)


def _shares(replicates: Replicates, share: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Divide a share, a number for each draw, among the results."""
    if isinstance(replicates, SweepResult):
        return [share]
    count = len(replicates)
    found: list[Tensor] = []
    for place in range(count):
        taken = torch.randint(count, share.shape, generator=generator)
        taken[0] = place  # all of them once
        own = (torch.where(taken == index, share / count, 0) for index in range(count))
        parts = [leaf for each, part in zip(replicates, own, strict=True) for leaf in _shares(each, part, generator)]
        found = [before + part for before, part in zip(found, parts, strict=True)] if found else parts
    return found
