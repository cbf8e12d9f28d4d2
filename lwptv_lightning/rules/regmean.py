"""RegMean."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.engine import Stream
from lwptv_lightning.registry import number
from lwptv_lightning.rules._base import MergeContext, MergeRule, is_matrix, merge_rule


@merge_rule("regmean", paper="https://arxiv.org/abs/2212.09849")
@dataclass(frozen=True, kw_only=True)
class RegMean(MergeRule):
    """Merge linear layers so that their outputs stay closest to each task's: a regression in closed form.

    For a weight ``(out, in)``: ``merged^T = (sum_t G_t)^-1 sum_t G_t tau_t^T``, where ``G_t`` is the Gram matrix of
    the layer's inputs on task t's data, ``X^T X / rows``, ``(in, in)``, with its off-diagonal elements multiplied by
    ``off_diagonal``. `lwptv_lightning.callbacks.CollectDataStatistics` collects it of linear layers, and of 1x1
    convolutions, whose weight ``(out, in, 1, 1)`` is a linear layer at each position. Tensors without one are averaged.

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
    tensors = "2-D tensors and 1x1 convolutions with a Gram matrix as matrices; others averaged"

    off_diagonal: float = number(0.9, "[0, 1]")

    def treats_as_matrix(self, name: str, shape: Sequence[int], tasks: int) -> bool:
        """Tell whether a tensor is a matrix, which is merged as one where it has Gram matrices."""
        return is_matrix(shape, name)

    def matrices(self, stream: Stream) -> tuple[str, ...]:
        """Return the names of the matrices that have Gram matrices."""
        return tuple(name for name in super().matrices(stream) if stream.is_collected(name))

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return each task's part ``((sum G)^-1 G_t tau_t^T)^T``, ``(T, *shape)``."""
        matrices = self.as_matrices(tau, context)
        if context.statistics is None or matrices is None:
            return tau / len(tau)
        gram = context.statistics.to(tau.device, torch.float64)
        diagonal = torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
        gram = self.off_diagonal * gram + (1 - self.off_diagonal) * diagonal
        targets = gram @ matrices.double().mT
        solution, failed = torch.linalg.solve_ex(gram.sum(0), targets)
        if failed or not torch.isfinite(solution).all():
            solution = torch.linalg.pinv(gram.sum(0), hermitian=True) @ targets
        merged: Tensor = solution.mT.to(tau.dtype).reshape(tau.shape)
        return merged
