"""RegMean."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.registry import number
from lwptv_lightning.rules._base import MergeContext, MergeRule, merge_rule


@merge_rule("regmean", paper="https://arxiv.org/abs/2212.09849")
@dataclass(frozen=True, kw_only=True)
class RegMean(MergeRule):
    """Merge linear layers so that their outputs stay closest to each task's: a regression in closed form.

    For a weight ``(out, in)``: ``merged^T = (sum_t G_t)^-1 sum_t G_t tau_t^T``, where ``G_t`` is the Gram matrix of
    the layer's inputs on task t's data, ``X^T X / rows``, ``(in, in)``, with its off-diagonal elements multiplied by
    ``off_diagonal``. `lwptv_lightning.callbacks.CollectDataStatistics` collects it. Tensors without one are averaged.

    Args:
        off_diagonal: In [0, 1]; below 1 it keeps the sum invertible. A sum that is singular is pseudo-inverted.

    Example:
        >>> from lwptv_lightning import MergeRecipe, TaskVectors, merge
        >>> tasks = {"a": {"w": torch.tensor([[1.0, 0.0]])}, "b": {"w": torch.tensor([[0.0, 1.0]])}}
        >>> vectors = TaskVectors.open({"w": torch.zeros(1, 2)}, tasks)
        >>> gram = {"a": {"w": torch.eye(2) * 3}, "b": {"w": torch.eye(2)}}
        >>> merge(vectors, MergeRecipe(rule="regmean"), statistics=gram)["w"]
        tensor([[0.7500, 0.2500]])

    Reference:
        Jin et al., Dataless knowledge fusion by merging weights of language models, arXiv 2212.09849. Deviation: a
        linear solve in float64 instead of an explicit inverse.
    """

    needs = "gram"

    off_diagonal: float = number(0.9, "[0, 1]")

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return each task's part ``((sum G)^-1 G_t tau_t^T)^T``, ``(T, *shape)``."""
        if context.statistics is None or tau.dim() != 3:
            return tau / len(tau)
        gram = context.statistics.to(tau.device, torch.float64)
        diagonal = torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
        gram = self.off_diagonal * gram + (1 - self.off_diagonal) * diagonal
        targets = gram @ tau.double().mT
        solution, failed = torch.linalg.solve_ex(gram.sum(0), targets)
        if failed or not torch.isfinite(solution).all():
            solution = torch.linalg.pinv(gram.sum(0), hermitian=True) @ targets
        merged: Tensor = solution.mT.to(tau.dtype)
        return merged
