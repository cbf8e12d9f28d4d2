"""TATR: task arithmetic in the trust region."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.engine import Stream, order_statistics
from lwptv_lightning.registry import number
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("tatr", paper="https://arxiv.org/abs/2501.15065", scale=0.3)
@dataclass(frozen=True, kw_only=True)
class TATR(MergeRule[Tensor]):
    """Add the task vectors where they conflict little: ``sum_t tau_t`` where ``Omega < threshold``, else 0.

    ``Omega = sum_{i != j} |tau_i| |tau_j|`` is the zero-shot form, in which a task vector stands in for its gradient.
    The threshold is the order statistic ``int(N * quantile)``, counted from 0, of Omega over the N weights of the
    model. A single task conflicts with none, so that Omega is 0 everywhere and nothing is below the threshold.

    Args:
        quantile: The fraction of weights in the trust region, in [0, 1]; 0 keeps nothing, 1 drops the largest Omega.

    Example:
        >>> from lwptv_lightning import MergeRecipe, TaskVectors, merge
        >>> tasks = {"a": {"w": torch.tensor([4.0, -1.0, 0.0])}, "b": {"w": torch.tensor([2.0, 3.0, 1.0])}}
        >>> vectors = TaskVectors.open({"w": torch.zeros(3)}, tasks)
        >>> merge(vectors, MergeRecipe(rule="tatr", scale=1.0))["w"]
        tensor([0., 2., 1.])

    Reference:
        Sun et al., Task arithmetic in trust region, arXiv 2501.15065, as FusionBench computes its zero-shot form.
        Deviation: the form with gradients is not offered.
    """

    unit = "element"

    quantile: float = number(0.99, "[0, 1]")

    def survey(self, stream: Stream) -> Tensor:
        """Find the threshold, ``(1,)``."""
        count = stream.elements
        rank = min(int(count * self.quantile), count - 1)
        return order_statistics(stream, [rank + 1], lambda block: _conflict(block.tau).unsqueeze(0))[0]

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return each task vector inside the trust region, ``(T, *shape)``."""
        conflict = _conflict(tau)
        return tau.mul_(torch.lt(conflict, float(context.survey), out=conflict))


def _conflict(tau: Tensor) -> Tensor:
    """Return ``sum_{i != j} |tau_i| |tau_j|``, ``(T, *shape) -> (*shape)``; each pair counts twice."""
    conflict = torch.zeros_like(tau[0])
    before = torch.zeros_like(tau[0])
    for magnitude in tau.abs():
        conflict += magnitude * before
        before += magnitude
    return 2 * conflict
