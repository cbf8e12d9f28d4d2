"""Iso-C: isotropic merging in the common subspace."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.functional import inverses, sum_tasks
from lwptv_lightning.registry import patterns
from lwptv_lightning.rules._base import MergeContext, MergeRule, is_matrix, merge_rule


@merge_rule("iso_c", paper="https://arxiv.org/abs/2502.04959")
@dataclass(frozen=True, kw_only=True)
class IsoC(MergeRule):
    """Add the task vectors of a matrix and make all singular values of the sum equal.

    With ``sum_t tau_t = U diag(s) V``, the result is ``mean(s) U V``. Matrices are 2-D tensors and the weights
    ``(out, in, 1, 1)`` of 1x1 convolutions; other tensors are averaged.

    Args:
        exclude: Globs of tensor names that are averaged although they are matrices.

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

    tensors = "2-D tensors and 1x1 convolutions as matrices; others averaged"
    is_isotropic = True

    exclude: tuple[str, ...] = patterns(())

    def treats_as_matrix(self, name: str, shape: Sequence[int], tasks: int) -> bool:
        """Tell whether a tensor is a matrix that is not excluded."""
        return is_matrix(shape, name, exclude=self.exclude)

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return ``U diag(mean(s) / s) U^T tau_t``, ``(T, *shape)``; directions that the sum has not are left out.

        Where tasks all but cancel, s is small, and the parts, which cancel too, are large.
        """
        if (matrices := self.as_matrices(tau, context)) is None:
            return tau / len(tau)
        left, values, _ = context.decompose(sum_tasks(matrices.double()).to(tau.dtype))
        rows = (values.mean() * inverses(values))[:, None] * (left.mT @ matrices.double())
        return (left @ rows).to(tau.dtype).reshape(tau.shape)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Merge one stack, ``(T, *shape) -> (*shape)``."""
        if (matrices := self.as_matrices(tau, context)) is None:
            return tau.mean(0)
        left, values, right = context.decompose(sum_tasks(matrices.double()).to(tau.dtype))
        return (values.mean() * left @ right).to(tau.dtype).reshape(tau.shape[1:])
