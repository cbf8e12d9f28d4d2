"""Simple average."""

from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("simple_average", paper="https://arxiv.org/abs/2203.05482")
@dataclass(frozen=True, kw_only=True)
class SimpleAverage(MergeRule):
    """Average the models: ``1/T sum_t tau_t``.

    A pruned row counts as a task that did not move, so T stays T.

    Example:
        >>> import torch
        >>> SimpleAverage().combine(torch.tensor([[1.0], [3.0]]), MergeContext("w", ("a", "b")))
        tensor([2.])

    Reference:
        Wortsman et al., Model soups, arXiv 2203.05482 (the uniform soup).
    """

    unit = "element"

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return ``tau_t / T``, ``(T, *shape)``."""
        return tau / len(tau)
