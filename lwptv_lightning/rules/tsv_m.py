"""TSV-M: task singular vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.functional import task_bases
from lwptv_lightning.registry import patterns
from lwptv_lightning.rules._base import MergeContext, MergeRule, is_matrix, merge_rule


@merge_rule("tsv_m", paper="https://arxiv.org/abs/2412.00081")
@dataclass(frozen=True, kw_only=True)
class TSVM(MergeRule):
    """Keep the strongest singular directions of each task's matrix and make those of different tasks orthogonal.

    Of each task the ``int(min(shape) / T)`` strongest triplets stay. With those of all tasks side by side as
    ``U diag(s) V``, the result is ``polar(U) diag(s) polar(V)``, where ``polar`` is the nearest matrix with
    orthonormal columns or rows. Matrices are 2-D tensors and the weights ``(out, in, 1, 1)`` of 1x1 convolutions. Other
    tensors, and matrices too small for one triplet each, are averaged.

    Args:
        exclude: Globs of tensor names that are averaged although they are matrices.

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

    decomposes_tasks = True
    tensors = "2-D tensors and 1x1 convolutions as matrices, where min(shape) >= T; others averaged"

    exclude: tuple[str, ...] = patterns(())

    def treats_as_matrix(self, name: str, shape: Sequence[int], tasks: int) -> bool:
        """Tell whether a tensor is a matrix from which each task can have a triplet."""
        return is_matrix(shape, name, exclude=self.exclude) and min(shape[:2]) >= tasks

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return each task's own term of ``polar(U) diag(s) polar(V)``, ``(T, *shape)``."""
        matrices, tasks = self.as_matrices(tau, context), len(tau)
        if matrices is None:
            return tau / tasks
        strongest = context.decompose(matrices).first(min(matrices.shape[1:]) // tasks)
        left, right = task_bases(strongest, tau.dtype)
        terms = zip(left.chunk(tasks, dim=1), strongest.values, right.chunk(tasks, dim=0), strict=True)
        made = torch.stack([own_left * own @ own_right for own_left, own, own_right in terms])
        return made.to(tau.dtype).reshape(tau.shape)
