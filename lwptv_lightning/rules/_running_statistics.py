"""Running statistics of batch normalisation: no weights, and merged by a rule of their own whatever the recipe's."""

from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.functional import sum_tasks
from lwptv_lightning.rules._base import MergeContext, MergeRule


@dataclass(frozen=True, kw_only=True)
class RunningStatistics(MergeRule):
    """Average running statistics over the tasks: ``1/T sum_t tau_t``, a pruned task counting with the base's.

    The rule is in no registry: a merge applies it, with the scale 1, to what the task vectors hold as ``averaged``.
    `lwptv_lightning.callbacks.RecalibrateBatchNorm` measures running statistics anew on data.
    """

    name = "running_statistics"
    paper = "https://arxiv.org/abs/1502.03167"
    published_scale = 1.0
    unit = "element"

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Average one stack, ``(T, *shape) -> (*shape)``."""
        return sum_tasks(tau).div_(len(tau))
