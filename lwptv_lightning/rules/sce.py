"""SCE: select, calculate and erase."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.functional import as_rows, elect_signs, per_row
from lwptv_lightning.registry import number
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("sce", paper="https://arxiv.org/abs/2408.07990")
@dataclass(frozen=True, kw_only=True)
class SCE(MergeRule):
    """Select the weights on which tasks differ most, weigh tasks by their energy, erase what disagrees in sign.

    In each tensor: keep the ``int(density * v)`` elements with the largest variance over tasks, where v counts those
    with any; ``w_t`` = mean ``tau_t^2`` of what is kept, normalised over tasks; elect the sign of the sum over tasks,
    + where it is 0; average the entries with that sign, weighted by ``w_t``.

    Args:
        density: The fraction to select, in (0, 1]; 1 selects everything.

    Example:
        >>> SCE().combine(torch.tensor([[1.0, 1.0], [3.0, -1.0]]), MergeContext("w", ("a", "b")))
        tensor([2.6667, 1.0000])

    Reference:
        Wan et al., FuseChat, arXiv 2408.07990, in the conventions of mergekit, the only code there is. Of equal
        variances those are selected that ``torch.topk`` selects, as there. Deviation: tasks weigh the same only where
        all are zero; in mergekit where the mean squares sum to less than 1e-6, which takes small task vectors for zero.
    """

    density: float = number(1.0, "(0, 1]")

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return what is selected and agrees of each task, times ``w_t`` over the sum of these, ``(T, *shape)``."""
        tau, agreeing = self._agreeing(tau)
        return tau * agreeing / agreeing.sum(0).clamp_min(1e-6)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Select, weigh and average one stack, ``(T, *shape) -> (*shape)``."""
        tau, agreeing = self._agreeing(tau)
        return (tau * agreeing).sum(0) / agreeing.sum(0).clamp_min(1e-6)

    def _agreeing(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is selected, and the tasks' weights where they agree, both ``(T, *shape)``."""
        if self.density < 1:
            variance = as_rows(tau).var(0, unbiased=False)
            count = int(variance.count_nonzero() * self.density)
            # On the CPU, whose order of equal variances is the same everywhere.
            selected = torch.zeros(len(variance), dtype=torch.bool)
            selected[variance.cpu().topk(count).indices] = True
            tau = torch.where(selected.view(tau.shape[1:]).to(tau.device), tau, 0)
        energy = as_rows(tau).square().mean(1)
        weights = energy / energy.sum() if energy.sum() > 0 else torch.full_like(energy, 1 / len(tau))
        return tau, (tau * elect_signs(tau, 1.0) > 0) * per_row(weights, tau)
