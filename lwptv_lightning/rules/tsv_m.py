"""TSV-M: task singular vectors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.functional import leading_triplets, polar_factor
from lwptv_lightning.registry import patterns
from lwptv_lightning.rules._base import MergeContext, MergeRule, is_matrix, merge_rule


@merge_rule("tsv_m", paper="https://arxiv.org/abs/2412.00081")
@dataclass(frozen=True, kw_only=True)
class TSVM(MergeRule):
    """Keep the strongest singular directions of each task's matrix and make those of different tasks orthogonal.

    Of each task the ``int(min(shape) / T)`` strongest triplets stay. With those of all tasks side by side as
    ``U diag(s) V``, the result is ``polar(U) diag(s) polar(V)``, where ``polar`` is the nearest matrix with
    orthonormal columns or rows. Tensors other than 2-D, and matrices too small for one triplet each, are averaged.

    Args:
        exclude: Globs of tensor names that are averaged although they are 2-D.

    Example:
        >>> tau = torch.tensor([[[4.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 2.0]]])
        >>> TSVM().combine(tau, MergeContext("w", ("a", "b")))
        tensor([[4., 0.],
                [0., 2.]])

    Reference:
        Gargiulo et al., Task singular vectors, arXiv 2412.00081. The authors' code averages names that hold
        ``text_projection``: ``exclude=("*text_projection*",)``. Deviations: directions without weight, those of a
        pruned task among them, do not take part in the orthogonalisation; a matrix smaller than T is averaged, where
        the authors' code leaves the base.
    """

    exclude: tuple[str, ...] = patterns(())

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return each task's own term of ``polar(U) diag(s) polar(V)``, ``(T, *shape)``."""
        shape, tasks = tau.shape[1:], len(tau)
        if not is_matrix(shape, context.name, exclude=self.exclude) or min(shape) < tasks:
            return tau / tasks
        lefts, values, rights = leading_triplets(tau, min(shape) // tasks)
        left, right = polar_factor(torch.cat([*lefts], dim=1)), polar_factor(torch.cat([*rights], dim=0))
        terms = zip(left.chunk(tasks, dim=1), values, right.chunk(tasks, dim=0), strict=True)
        return torch.stack([own_left * own @ own_right for own_left, own, own_right in terms]).to(tau.dtype)
