"""Paired comparisons of models that were evaluated on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.evaluation import averages
from lwptv_lightning.registry import LoaderName, require_known


@dataclass(frozen=True)
class SweepResult:
    """What each candidate got right.

    Attributes:
        names: The R candidates.
        outcomes: Loader name to whether each of its N samples was classified correctly, ``(R, N)`` bool.
        seconds: How long each candidate's merge takes on its own, saliency statistics and pruning included.
    """

    names: tuple[str, ...]
    outcomes: Mapping[str, Tensor]
    seconds: Mapping[str, float]

    def correct(self, name: str) -> dict[str, Tensor]:
        """Return a candidate's outcomes, loader name to ``(N,)`` bool."""
        require_known("candidate", name, self.names)
        return {loader: outcomes[self.names.index(name)] for loader, outcomes in self.outcomes.items()}

    def figures(self, name: str) -> dict[str, float]:
        """Return a candidate's accuracy for each loader, then the averages over groups and domains, as fractions."""
        accuracy = {loader: float(outcomes.double().mean()) for loader, outcomes in self.correct(name).items()}
        return accuracy | averages(accuracy, loaders=accuracy)

    def difference(
        self, name: str, other: str, domain: str, *, draws: int = 2000, confidence: float = 0.95, seed: int = 0
    ) -> Difference:
        """Compare two candidates' averages over a domain, as fractions, by a paired bootstrap over the samples.

        Each draw takes as many samples from every set of the domain as there are, with replacement, the same for both
        candidates, and averages the difference in accuracy over the sets.

        Args:
            name: One candidate.
            other: The candidate to subtract.
            domain: ``"id"``, ``"ood"`` or a group of one, ``"ood/<group>"``.
            draws: How many bootstrap draws.
            confidence: Coverage of the interval, in (0, 1).
            seed: For the draws.
        """
        generator = torch.Generator().manual_seed(seed)
        first, second = self.correct(name), self.correct(other)
        exact, drawn = [], []
        for loader in self.outcomes:
            if LoaderName.parse(loader).is_within(domain):
                change = first[loader].double() - second[loader].double()
                samples = torch.randint(len(change), (draws, len(change)), generator=generator)
                exact.append(change.mean())
                drawn.append(change[samples].mean(1))
        ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
        low, high = torch.stack(drawn).mean(0).quantile(ends).tolist()
        return Difference(float(torch.stack(exact).mean()), low, high)


@dataclass(frozen=True)
class Difference:
    """A difference of two average accuracies with its confidence interval, as fractions."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
