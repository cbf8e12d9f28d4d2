"""Task arithmetic."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.functional import per_row
from lwptv_lightning.registry import per_task, require_per_task
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("task_arithmetic", paper="https://arxiv.org/abs/2212.04089", scale=0.3)
@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(MergeRule):
    """Add the task vectors: ``sum_t c_t tau_t``.

    Args:
        coefficients: ``c_t``, one for each task in the order of the tasks; all 1 by default. With coefficients the
            recipe's scale is 1 unless given, without them it is 0.3.

    Example:
        >>> TaskArithmetic(coefficients=(1, 0.5)).combine(torch.tensor([[1.0], [2.0]]), MergeContext("w", ("a", "b")))
        tensor([2.])

    Reference:
        Ilharco et al., Editing models with task arithmetic, arXiv 2212.04089.
    """

    unit = "element"

    coefficients: tuple[float, ...] | None = per_task()

    @property
    def default_scale(self) -> float:
        """0.3, or 1 where coefficients are given."""
        return self.published_scale if self.coefficients is None else 1.0

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return ``c_t tau_t``, ``(T, *shape)``."""
        if self.coefficients is None:
            return tau
        require_per_task("coefficients", self.coefficients, context.tasks)
        return tau * per_row(torch.tensor(self.coefficients, dtype=torch.float64), tau)
