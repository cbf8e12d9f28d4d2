"""Model Breadcrumbs with the sign election of TIES."""

from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.functional import agreeing_parts, combine_agreeing, elect_signs, keep_middle_
from lwptv_lightning.registry import choice, number
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("breadcrumbs_ties", paper="https://arxiv.org/abs/2312.06795", scale=0.3)
@dataclass(frozen=True, kw_only=True)
class BreadcrumbsTIES(MergeRule):
    """Drop outliers and smallest elements, elect one sign per weight, combine the entries that agree with it.

    What each task keeps is that of ``breadcrumbs``. Elect: the sign of the sum over tasks, + where it is 0.

    Args:
        density: The fraction to keep of each tensor, in (0, 1].
        outliers: The fraction of largest elements to drop, in [0, 1]; fewer where ``density`` asks for them.
        reduce: ``"mean"`` over the entries that agree, their ``"sum"``, or the ``"max"``.

    Example:
        >>> import torch
        >>> tau = torch.tensor([[1.0, -4.0, 3.0, 2.0], [1.0, 2.0, -2.0, 2.0]])
        >>> BreadcrumbsTIES(density=0.75, outliers=0.25).combine(tau, MergeContext("w", ("a", "b")))
        tensor([2., 2., 3., 2.])

    Reference:
        Davari and Belilovsky, Model breadcrumbs, arXiv 2312.06795, in the conventions of mergekit's method of this
        name, which adds what agrees. Deviation: as for ``breadcrumbs``.
    """

    density: float = number(0.85, "(0, 1]")
    outliers: float = number(0.01, "[0, 1]")
    reduce: str = choice("sum", ("mean", "sum", "max"))

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return what agrees of each task, over how many agree for the mean, ``(T, *shape)``."""
        kept = keep_middle_(tau, self.density, self.outliers)
        return agreeing_parts(kept, elect_signs(kept, 1.0), self.reduce)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Select, elect and merge one stack, ``(T, *shape) -> (*shape)``."""
        kept = keep_middle_(tau, self.density, self.outliers)
        return combine_agreeing(kept, elect_signs(kept, 1.0), self.reduce)
