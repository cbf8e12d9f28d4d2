"""Consensus task arithmetic."""

from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.functional import consensus_mask, keep_consensus, sum_tasks
from lwptv_lightning.registry import number, whole
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("consensus_ta", paper="https://arxiv.org/abs/2405.07813", scale=0.3)
@dataclass(frozen=True, kw_only=True)
class ConsensusTA(MergeRule):
    """Add the task vectors, and keep the weights that matter to several tasks.

    With ``M = sum_t tau_t``, a weight matters to task t where ``|tau_t| > tall_lambda |M - tau_t|`` (its TALL mask).
    The result is M where it matters to at least ``min_tasks`` tasks, and 0 elsewhere.

    Args:
        tall_lambda: How much larger than the rest a task's own part must be, at least 0.
        min_tasks: How many tasks a weight must matter to, at least 0; 0 keeps everything, more than T nothing.

    Example:
        >>> import torch
        >>> tau = torch.tensor([[1.0, 1.0], [1.0, 0.1]])
        >>> ConsensusTA().combine(tau, MergeContext("w", ("a", "b")))
        tensor([2., 0.])

    Reference:
        Wang et al., Localizing task information, arXiv 2405.07813. Deviation: the authors choose lambda for each task
        on validation data; here one lambda serves all.
    """

    unit = "element"

    tall_lambda: float = number(0.4, "[0, inf)")
    min_tasks: int = whole(2)

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return each task vector where weights matter to several tasks, ``(T, *shape)``."""
        return tau * consensus_mask(tau, sum_tasks(tau), self.tall_lambda, self.min_tasks)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Sum and mask one stack, ``(T, *shape) -> (*shape)``."""
        return keep_consensus(tau, sum_tasks(tau), self.tall_lambda, self.min_tasks)
