"""Weighted average."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.functional import per_row
from lwptv_lightning.registry import flag, per_task, require_per_task
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("weighted_average", paper="https://arxiv.org/abs/2203.05482")
@dataclass(frozen=True, kw_only=True)
class WeightedAverage(MergeRule):
    """Average the models with weights: ``sum_t w_t tau_t / sum_t w_t``.

    Args:
        weights: ``w_t``, one for each task in the order of the tasks; equal ones, ``1/T`` each, by default.
        normalize: Whether to divide by the sum of the weights, which must not be 0 then.

    Example:
        >>> WeightedAverage(weights=(3, 1)).combine(torch.tensor([[1.0], [5.0]]), MergeContext("w", ("a", "b")))
        tensor([2.])

    Reference:
        Wortsman et al., Model soups, arXiv 2203.05482; as in mergekit's ``linear``, weights are normalised by
        default. Deviations: weights that sum to 0 are refused. Without normalization the task vectors are weighted
        and not the models, so that the base keeps the weight 1 whatever the sum.
    """

    unit = "element"

    weights: tuple[float, ...] | None = per_task()
    normalize: bool = flag(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is None or not self.normalize:
            return
        # The tolerance catches sums such as 0.1 + 0.2 - 0.3, which rounding keeps from being 0.
        if abs(math.fsum(self.weights)) <= 1e-9 * math.fsum(map(abs, self.weights)):
            raise ValueError(f"weights must not sum to 0 where normalize is true, but are {self.weights}.")

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return each task's weighted task vector, ``(T, *shape)``."""
        if self.weights is None:
            return tau / len(tau)
        require_per_task("weights", self.weights, context.tasks)
        total = math.fsum(self.weights) if self.normalize else 1.0
        return tau * per_row(torch.tensor(self.weights, dtype=torch.float64) / total, tau)
