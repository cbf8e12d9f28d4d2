"""Consensus task arithmetic."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule
from lwptv_lightning.rules._ops import tall_masks
from lwptv_lightning.rules._parameters import number, whole


@merge_rule("consensus_ta", paper="https://arxiv.org/abs/2405.07813", scale=0.3)
@dataclass(frozen=True, kw_only=True)
class ConsensusTA(MergeRule):
    """Add the task vectors, and keep the weights that matter to several tasks.

    With ``M = sum_t tau_t``, a weight matters to task t where ``|tau_t| > tall_lambda |M - tau_t|`` (its TALL mask).
    The result is M where it matters to at least ``min_tasks`` tasks, and 0 elsewhere.

    Args:
        tall_lambda: How much larger than the rest a task's own part must be, at least 0.
        min_tasks: How many tasks a weight must matter to, at least 1; more than T keeps nothing.

    Example:
        >>> from lwptv_lightning.rules import MergeContext
        >>> tau = torch.tensor([[1.0, 1.0], [1.0, 0.1]])
        >>> ConsensusTA().combine(tau, MergeContext("w", ("a", "b")))
        tensor([2., 0.])

    Reference:
        Wang et al., Localizing task information, arXiv 2405.07813. Deviation: the authors choose lambda for each task
        on validation data; here one lambda serves all.
    """

    tall_lambda: float = number(0.4, "[0, inf)")
    min_tasks: int = whole(2, at_least=1)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Sum and mask one stack, ``(T, *shape) -> (*shape)``."""
        merged = tau.sum(0)
        mattering = tall_masks(tau, merged, self.tall_lambda).sum(0)
        return torch.where(mattering >= self.min_tasks, merged, 0)
