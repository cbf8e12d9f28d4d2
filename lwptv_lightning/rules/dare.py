"""DARE: drop and rescale."""

from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.functional import drop_at_random_
from lwptv_lightning.registry import number, whole
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("dare", paper="https://arxiv.org/abs/2311.03099", scale=0.3)
@dataclass(frozen=True, kw_only=True)
class DARE(MergeRule):
    """Drop elements at random, rescale the rest, then add: ``sum_t m_t tau_t / density``, ``m_t ~ Bernoulli``.

    Args:
        density: The probability that an element is kept, in (0, 1]; the paper's drop rate is ``1 - density``.
        seed: Seeds the draw, together with the names of task and tensor and an element's position. So the result
            depends neither on the order of tensors nor on the device, the threads or the number of processes.

    Example:
        >>> import torch
        >>> DARE(density=0.5).combine(torch.ones(1, 64), MergeContext("w", ("a",))).unique()
        tensor([0., 2.])

    Reference:
        Yu et al., Language models are super Mario, arXiv 2311.03099. Deviation: the random stream is our own; one
        draw of the authors' code depends on the order in which tensors are visited.
    """

    unit = "element"

    density: float = number(0.5, "(0, 1]")
    seed: int = whole(0)

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return ``m_t tau_t / density``, ``(T, *shape)``."""
        return drop_at_random_(tau, self.density, self.seed, context.tasks, context.name, context.start)
