"""Paired comparisons of models that were evaluated on the same samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from lwptv_lightning.evaluation import averages
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import require_finite, require_known, require_texts, require_whole

_DRAWN_AT_ONCE = 1 << 22
"""How many samples are drawn at once; in parts they are the same."""


@dataclass(frozen=True)
class SweepResult:
    """What each candidate got right.

    Attributes:
        names: The R candidates.
        outcomes: Loader name to whether each of its N samples was classified correctly, ``(R, N)`` bool.
        seconds: How long each candidate's merge takes on its own, saliency statistics and pruning included.
        changes: Norm of each candidate's change from the base over all merged tensors, 0 for the base itself; there is
            none of weights whose base is not known.
        recipes: The recipe of each candidate that is no weights; that of `Gates` holds what was learnt.
    """

    names: tuple[str, ...]
    outcomes: Mapping[str, Tensor]
    seconds: Mapping[str, float]
    changes: Mapping[str, float] = field(default_factory=dict)
    recipes: Mapping[str, MergeRecipe] = field(default_factory=dict)

    def correct(self, name: str) -> dict[str, Tensor]:
        """Return a candidate's outcomes, loader name to ``(N,)`` bool."""
        require_known("candidate", name, self.names)
        return {loader: outcomes[self.names.index(name)] for loader, outcomes in self.outcomes.items()}

    def figures(self, name: str) -> dict[str, float]:
        """Return a candidate's accuracy for each loader, then the averages over groups and domains, as fractions."""
        accuracy = {loader: float(outcomes.double().mean()) for loader, outcomes in self.correct(name).items()}
        return accuracy | averages(accuracy, loaders=accuracy)

    def difference(
        self,
        name: str,
        other: str | Sequence[str],
        domain: str | Sequence[str],
        *,
        draws: int = 2000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> Difference:
        """Compare two candidates' averages over a domain, as fractions, by a paired bootstrap over the samples.

        Each draw takes as many samples from every set of the domain as there are, with replacement, the same for both
        candidates, and averages the difference in accuracy over the sets.

        Args:
            name: One candidate.
            other: The candidate to subtract; of several, such as random masks, their mean.
            domain: ``"id"``, ``"ood"``, a group such as ``"ood/near"``, or a loader's name; of several, the mean of
                their averages, so that ``("id", "ood")`` is half of each.
            draws: How many bootstrap draws.
            confidence: Coverage of the interval, in (0, 1).
            seed: For the draws.

        Raises:
            UnknownNameError: There is no such candidate, or no set of such a domain.
            ValueError: A set has no sample, there is no draw, or the coverage is none.

        Example:
            >>> right = torch.tensor([[True, True, True, False], [True, False, False, False]])
            >>> result = SweepResult(("pruned", "plain"), {"ood/near/a": right, "ood/far/b": right[:, :2]}, {})
            >>> result.difference("pruned", "plain", "ood/far").value
            0.5
        """
        require_whole("draws", draws, 1)
        ends = interval_ends(confidence)
        generator = torch.Generator().manual_seed(require_whole("seed", seed))
        weights = weights_over(self.outcomes, domain)
        first, second = self.correct(name), self.mean_correct([other] if isinstance(other, str) else other)
        value, variance = (
            paired_difference(first, self.correct(other), weights)
            if isinstance(other, str)
            else _mean_difference(first, second, weights)
        )
        drawn = torch.zeros(draws, dtype=torch.float64)
        for loader, weight in weights.items():
            drawn += _resampled_means(first[loader].double() - second[loader], draws, generator) * float(weight)
        low, high = drawn.quantile(ends).tolist()
        return Difference(float(value), low, high, math.nan if variance is None else math.sqrt(variance))

    def mean_correct(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the mean of several candidates' outcomes, loader name to ``(N,)`` float64."""
        correct = [self.correct(name) for name in require_texts("names", names, "names of candidates")]
        if not correct:
            raise ValueError("names is empty: expected at least one candidate.")
        return {loader: torch.stack([each[loader].double() for each in correct]).mean(0) for loader in self.outcomes}


@dataclass(frozen=True)
class Difference:
    """A difference of two average accuracies with its confidence interval, as fractions.

    Attributes:
        value: The difference.
        low: Lower end of the interval.
        high: Upper end.
        standard_error: The standard error of the paired difference; nan where a set has a single sample.
    """

    value: float
    low: float
    high: float
    standard_error: float = math.nan

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def weights_over(loaders: Iterable[str], domain: str | Sequence[str]) -> dict[str, Fraction]:
    """Return what each loader weighs in the average over a domain; those outside of it are left out.

    Args:
        loaders: Their names.
        domain: As in `SweepResult.difference`.

    Raises:
        UnknownNameError: No loader is of such a domain.

    Example:
        >>> weights_over(["id/a", "ood/near/b", "ood/far/c"], ("id", "ood"))
        {'id/a': Fraction(1, 2), 'ood/near/b': Fraction(1, 4), 'ood/far/c': Fraction(1, 4)}
    """
    loaders = list(loaders)
    pieces = [loader.split("/") for loader in loaders]
    known = dict.fromkeys("/".join(parts[:length]) for parts in pieces for length in range(1, len(parts) + 1))
    domains = [domain] if isinstance(domain, str) else require_texts("domain", domain, "texts such as 'id' or 'ood'")
    if not domains:
        raise ValueError("domain is empty: expected at least one, such as 'id'.")
    found = dict.fromkeys(loaders, Fraction(0))
    for each in domains:
        require_known("domain", each, known)
        # A loader's own name goes before a part of a longer one.
        members = [each] if each in loaders else [loader for loader in loaders if loader.startswith(f"{each}/")]
        for loader in members:
            found[loader] += Fraction(1, len(members) * len(domains))
    return {loader: weight for loader, weight in found.items() if weight}


def paired_difference(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], weights: Mapping[str, Fraction]
) -> tuple[Fraction, Fraction | None]:
    """Return the difference of two weighted accuracies and the variance of it over samples, both exactly.

    In a set of N samples, of which the first alone is right on a and the second alone on b, the mean of the differences
    is ``(a - b) / N``, its variance ``(a + b - (a - b)^2 / N) / (N (N - 1))``. Sets' variances add up, with the squares
    of their weights.

    Args:
        first: Loader name to outcomes, ``(N,)`` bool.
        second: The outcomes to subtract.
        weights: Loader name to weight; other loaders do not count.

    Returns:
        Both; ``None`` for the variance where a set has a single sample.

    Raises:
        ValueError: A set has no sample.

    Example:
        >>> right = {"id/a": torch.tensor([True, True, False])}, {"id/a": torch.tensor([True, False, False])}
        >>> paired_difference(*right, {"id/a": Fraction(1)})
        (Fraction(1, 3), Fraction(1, 9))
    """
    value, variance, is_known = Fraction(0), Fraction(0), True
    for loader, weight in weights.items():
        ours, theirs = first[loader].bool(), second[loader].bool()
        size, ahead, behind = len(ours), int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
        if not size:
            raise ValueError(f"loader {loader!r} has no sample, so that nothing can be compared on it.")
        value += weight * Fraction(ahead - behind, size)
        if size == 1:
            is_known = False
        else:
            variance += weight**2 * (ahead + behind - Fraction((ahead - behind) ** 2, size)) / (size * (size - 1))
    return value, variance if is_known else None


def _mean_difference(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], weights: Mapping[str, Fraction]
) -> tuple[float, float | None]:
    """Do what `paired_difference` does with outcomes that are means over several models."""
    value, variance = 0.0, 0.0
    for loader, weight in weights.items():
        change = first[loader].double() - second[loader]
        if not len(change):
            raise ValueError(f"loader {loader!r} has no sample, so that nothing can be compared on it.")
        value += float(weight) * float(change.mean())
        variance += float(weight) ** 2 * (float(change.var()) / len(change) if len(change) > 1 else math.nan)
    return value, None if math.isnan(variance) else variance


def _resampled_means(values: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Return the means of draws of as many of some values as there are, with replacement, ``(draws,)``."""
    size, at_once = len(values), max(1, _DRAWN_AT_ONCE // len(values))
    some = [min(at_once, draws - first) for first in range(0, draws, at_once)]
    return torch.cat([values[torch.randint(size, (each, size), generator=generator)].mean(1) for each in some])


def interval_ends(confidence: float) -> Tensor:
    """Return the two quantiles between which an interval of some coverage lies."""
    if not 0 < require_finite("confidence", confidence) < 1:
        raise ValueError(f"confidence must be a number in (0, 1), not {confidence!r}.")
    return torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
