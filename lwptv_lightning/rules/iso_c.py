"""Iso-C: isotropic merging in the common subspace."""

from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.functional import leading_triplets
from lwptv_lightning.registry import patterns
from lwptv_lightning.rules._base import MergeContext, MergeRule, is_matrix, merge_rule


@merge_rule("iso_c", paper="https://arxiv.org/abs/2502.04959")
@dataclass(frozen=True, kw_only=True)
class IsoC(MergeRule):
    """Add the task vectors of a matrix and make all singular values of the sum equal.

    With ``sum_t tau_t = U diag(s) V``, the result is ``mean(s) U V``. Tensors other than 2-D are averaged.

    Args:
        exclude: Globs of tensor names that are averaged although they are 2-D.

    Example:
        >>> import torch
        >>> tau = torch.tensor([[[4.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]])
        >>> IsoC().combine(tau, MergeContext("w", ("a", "b")))
        tensor([[3., 0.],
                [0., 3.]])

    Reference:
        Marczak et al., No task left behind, arXiv 2502.04959. The authors' code averages names that hold
        ``text_projection``: ``exclude=("*text_projection*",)``. Deviation: where the sum lacks full rank, directions
        that no task has stay zero, though the mean counts them; there the authors' code fills in arbitrary ones.
    """

    exclude: tuple[str, ...] = patterns(())

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Merge one stack, ``(T, *shape) -> (*shape)``."""
        if not is_matrix(tau.shape[1:], context.name, exclude=self.exclude):
            return tau.mean(0)
        left, values, right = leading_triplets(tau.sum(0))
        return (values.mean() * left @ right).to(tau.dtype)
