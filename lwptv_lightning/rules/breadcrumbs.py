"""Model Breadcrumbs."""

from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.functional import keep_middle_
from lwptv_lightning.registry import number
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("breadcrumbs", paper="https://arxiv.org/abs/2312.06795", scale=0.3)
@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(MergeRule):
    """Drop the outliers and the smallest elements of each task vector, then add: ``sum_t m_t tau_t``.

    Of the n elements of each tensor of each task ``m_t`` keeps ``int(n * density)``: the ``int(n * outliers)``
    largest ``|tau|`` go first, then the smallest.

    Args:
        density: The fraction to keep, in (0, 1].
        outliers: The fraction of largest elements to drop, in [0, 1]; fewer where ``density`` asks for them.

    Example:
        >>> import torch
        >>> tau = torch.tensor([[1.0, 4.0, 3.0, -2.0]])
        >>> Breadcrumbs(density=0.5, outliers=0.25).combine(tau, MergeContext("w", ("a",)))
        tensor([ 0.,  0.,  3., -2.])

    Reference:
        Davari and Belilovsky, Model breadcrumbs, arXiv 2312.06795, by tensor as in mergekit; the authors' code goes
        by rows, which empties convolutions. Deviation from mergekit: where ``int(n * outliers)`` is 0, it drops the
        whole tensor, and here no outlier is dropped.
    """

    unit = "task"

    density: float = number(0.85, "(0, 1]")
    outliers: float = number(0.01, "[0, 1]")

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return what is kept of each task vector, ``(T, *shape)``."""
        return keep_middle_(tau, self.density, self.outliers)
