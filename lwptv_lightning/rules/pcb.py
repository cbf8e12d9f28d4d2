"""PCB-merging: parameter competition balancing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.engine import Stream, order_statistics
from lwptv_lightning.functional import per_row, sum_tasks
from lwptv_lightning.registry import number
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("pcb", paper="https://arxiv.org/abs/2410.02396")
@dataclass(frozen=True, kw_only=True)
class PCB(MergeRule[tuple[Tensor, ...]]):
    """Average the task vectors with weights for which parameters compete within and between tasks.

    With a = ``|tau_t|`` clamped to its own quantiles, ``score_t = exp(T minmax(a)^2) tanh(tau_t sum_s tau_s)``. A
    task's weights are its scores above the ``1 - density`` quantile, scaled to [0, 1]; the result is
    ``sum_t w_t sign(tau_t) a_t / sum_t w_t``. Extremes and quantiles are those of the whole model.

    Args:
        density: The fraction of each task's scores that get a weight, in (0, 1].
        clip: The quantile of ``|tau_t|`` that is clamped at both ends, in [0, 0.5).

    Example:
        >>> from lwptv_lightning import MergeRecipe, TaskVectors, merge
        >>> tasks = {"a": {"w": torch.tensor([4.0, -1.0, 1.0])}, "b": {"w": torch.tensor([1.0, -4.0, 1.0])}}
        >>> vectors = TaskVectors.open({"w": torch.zeros(3)}, tasks)
        >>> merge(vectors, MergeRecipe(rule=PCB(density=0.5, clip=0)))["w"]
        tensor([ 4., -4.,  0.])

    Reference:
        Du et al., Parameter competition balancing for model merging, arXiv 2410.02396, in the form of the authors'
        main file. Deviations: a task that is zero has weight 0, and where all scores that count are equal and
        positive their weight is 1; the authors' code divides 0 by 0 in both cases.
    """

    unit = "element"

    density: float = number(0.1, "(0, 1]")
    clip: float = number(1e-4, "[0, 0.5)")

    def survey(self, stream: Stream) -> tuple[Tensor, ...]:
        """Find the two quantiles of magnitudes for each task, ``(T,)``, then those of scores."""
        count = stream.elements
        ends = int(count * self.clip) + 1, int(count * (1 - self.clip) - 1) + 1
        low, high = order_statistics(stream, ends, lambda block: block.tau.abs())
        # For a density next to 0, 1 - density rounds to 1.
        dropped = min(int(count * (1 - self.density)), count - 1)
        least, most = order_statistics(stream, [dropped + 1, count], lambda block: _scores(block.tau, low, high))
        return low, high, least, most

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return ``w_t sign(tau_t) a_t / sum_s w_s``, ``(T, *shape)``."""
        weighted, total = self._weighted(tau, context)
        return weighted / total

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Weigh and average one stack, ``(T, *shape) -> (*shape)``."""
        weighted, total = self._weighted(tau, context)
        return sum_tasks(weighted) / total

    def _weighted(self, tau: Tensor, context: MergeContext) -> tuple[Tensor, Tensor]:
        """Return the clamped task vectors times their weights, ``(T, *shape)``, and the sum of these, ``(*shape)``."""
        low, high, least, most = (per_row(limit, tau) for limit in context.survey)
        scores = _scores(tau, low, high)
        reaching_most = ((scores >= most) & (most > 0)).to(tau.dtype)
        weights = torch.where(most > least, (scores.clamp_min(least) - least) / (most - least), reaching_most)
        clamped = tau.sign() * tau.abs().clamp(low, high)
        return clamped * weights, sum_tasks(weights).clamp_(min=1e-12)


def _scores(tau: Tensor, low: Tensor, high: Tensor) -> Tensor:
    low, high = per_row(low, tau), per_row(high, tau)
    relative = torch.where(high > low, (tau.abs().clamp(low, high) - low) / (high - low), 0)
    # The weights do not depend on a common factor of the scores; exp(-T) keeps the exponential from overflowing.
    return (len(tau) * (relative.square() - 1)).exp() * (tau * sum_tasks(tau)).tanh()
