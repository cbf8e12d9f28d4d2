"""EMR-merging: elect, mask and rescale."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.engine import Block, Stream
from lwptv_lightning.functional import agreeing_parts, combine_agreeing, elect_signs
from lwptv_lightning.registry import natural_order
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("emr", paper="https://arxiv.org/abs/2405.17461")
@dataclass(frozen=True, kw_only=True)
class EMR(MergeRule[Tensor]):
    """Elect a unified task vector; a mask and a number make each task's own model of it.

    Elect: ``sign = sign(sum_t tau_t)``, - where the sum is 0, and ``unified = sign max |tau_t|`` over the tasks with
    that sign. Mask: ``m_t = (tau_t sign > 0)``. Rescale: ``r_t = sum mean |tau_t| / sum mean |unified m_t|``, means
    over each tensor, sums over tensors. The model of all tasks is ``unified``, that of task t ``r_t m_t unified``.

    Example:
        >>> from lwptv_lightning import MergeRecipe, TaskVectors, merge
        >>> tasks = {"a": {"w": torch.tensor([4.0, -1.0])}, "b": {"w": torch.tensor([2.0, 3.0])}}
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, tasks)
        >>> merge(vectors, MergeRecipe(rule="emr"))["w"], merge(vectors, MergeRecipe(rule="emr"), task="a")["w"]
        (tensor([4., 3.]), tensor([5., 0.]))

    Reference:
        Huang et al., EMR-merging, arXiv 2405.17461. Deviation: the rescaler of a task whose masked vector is zero is
        1, where the authors' code divides by 0.
    """

    unit = "element"
    per_task = True

    def survey(self, stream: Stream) -> Tensor:
        """Find the rescalers, ``(T,)``."""

        def magnitudes(block: Block) -> Tensor:
            unified, mask = _elect(block.tau)
            sums = torch.stack([block.tau.abs().sum(1), mask.mul_(unified).abs_().sum(1)])
            return sums.double() / stream.numel(block.name)

        filled = [name for name in natural_order(stream.names) if stream.numel(name)]
        found = stream.sum(magnitudes, filled).values()
        own, masked = sum(found, torch.zeros(2, 1, dtype=torch.float64))
        return torch.where(masked > 0, own / masked, 1.0)

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return of each task what is the largest with the elected sign, ``(T, *shape)``; of the wanted task's own."""
        signs = elect_signs(tau, -1.0)
        made = agreeing_parts(tau, signs, "max")
        if context.task is None:
            return made
        task = context.tasks.index(context.task)
        return made * (tau[task] * signs > 0) * float(context.survey[task])

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return the unified task vector, or the wanted task's own, ``(T, *shape) -> (*shape)``."""
        unified, mask = _elect(tau)
        if context.task is None:
            return unified
        task = context.tasks.index(context.task)
        return unified * mask[task] * float(context.survey[task])


def _elect(tau: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unified task vector, ``(*shape)``, and each task's mask, ``(T, *shape)``."""
    signs = elect_signs(tau, -1.0)
    votes = tau * signs
    return combine_agreeing(tau, signs, "max"), torch.gt(votes, 0, out=votes)
