"""SCORE: what tasks do to each other's directions, cut where it is strong."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from lwptv_lightning.functional import TaskBases, task_bases, with_plain_signs
from lwptv_lightning.registry import flag, patterns
from lwptv_lightning.rules._base import MergeContext, MergeRule, is_matrix, merge_rule

_WIDTH = 1.96


@merge_rule("score", paper="https://arxiv.org/abs/2603.05768")
@dataclass(frozen=True, kw_only=True)
class SCORE(MergeRule):
    """Add the task vectors in directions that all tasks share, without the strong interactions between directions.

    The ``k = min(shape) // T`` strongest singular vectors of each task, those of all side by side, give the bases
    ``P = polar(U)`` and ``Q = polar(V)`` of ``T*k`` directions. In these a task's whole matrix is the core
    ``M_t = P^T tau_t Q^T``. Its diagonal stays, and other entries where ``|entry - mu| <= 1.96 sd / T``, with mu and sd
    the mean and the standard deviation of all entries once the diagonal is zero. The result is ``P (sum_t M_t) Q`` of
    what stays. Matrices are 2-D tensors and the weights ``(out, in, 1, 1)`` of 1x1 convolutions. Other tensors, and
    matrices too small for one direction each, are averaged.

    The cut depends on the signs of singular vectors, which are a choice: here the largest entry of each left one is
    positive, of equally large ones the first. Equal tasks share their directions. Where singular values are equal, or
    task vectors parallel but for rounding, this chooses a part of the bases, and so of the result.

    Args:
        off_diagonal: Whether small entries off the diagonal stay; without them it is the authors' second variant.
        divide_by_tasks: Whether the width of the cut is divided by T. The authors do not for their medical data.
        exclude: Globs of tensor names that are averaged although they are matrices.

    Example:
        >>> tau = torch.tensor([[[4.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]])
        >>> SCORE(off_diagonal=False).combine(tau, MergeContext("w", ("a", "b"))).round(decimals=2)
        tensor([[ 4.0600,  0.5000],
                [-0.2400,  1.9700]])

    Reference:
        SCORE, arXiv 2603.05768. The authors' code averages names that hold ``text_projection``:
        ``exclude=("*text_projection*",)``. Deviations: it leaves the signs to the library of linear algebra, by which
        its results differ by a tenth; it fills bases up to ``min(shape)`` with arbitrary directions, as it does for a
        pruned task, where here absent directions are zero, and their zeros count in mu and sd;
        ``int(min(shape) * (1 / T))`` is one short for some T; a matrix smaller than T is averaged, where all its
        directions are arbitrary there.
    """

    decomposes_tasks = True
    tensors = "2-D tensors and 1x1 convolutions as matrices, where min(shape) >= T; others averaged"

    off_diagonal: bool = flag(True)
    divide_by_tasks: bool = flag(True)
    exclude: tuple[str, ...] = patterns(())

    def treats_as_matrix(self, name: str, shape: Sequence[int], tasks: int) -> bool:
        """Tell whether a tensor is a matrix from which each task can have a direction."""
        return is_matrix(shape, name, exclude=self.exclude) and min(shape[:2]) >= tasks

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return what stays of each task, ``P M_t Q`` with the bases of all tasks, ``(T, *shape)``."""
        if (matrices := self.as_matrices(tau, context)) is None:
            return tau / len(tau)
        bases, cores = self._kept(matrices, context)
        return torch.stack([*map(bases.of_core, cores)]).to(tau.dtype).reshape(tau.shape)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Merge one stack, ``(T, *shape) -> (*shape)``."""
        if (matrices := self.as_matrices(tau, context)) is None:
            return tau.mean(0)
        bases, cores = self._kept(matrices, context)
        return bases.of_core(reduce(torch.add, cores)).to(tau.dtype).reshape(tau.shape[1:])

    def _kept(self, matrices: Tensor, context: MergeContext) -> tuple[TaskBases, Iterator[Tensor]]:
        """Return the bases, and of each task what stays of its core, ``(T*k, T*k)``."""
        tasks = len(matrices)
        strongest = context.decompose(matrices).first(min(matrices.shape[1:]) // tasks)
        bases = task_bases(with_plain_signs(strongest), matrices.dtype)
        return bases, (self._cut(bases.core(matrix), tasks) for matrix in matrices)

    def _cut(self, core: Tensor, tasks: int) -> Tensor:
        """Return what stays of a task's core, ``(T*k, T*k)``."""
        diagonal = core.diagonal().diag()
        if not self.off_diagonal:
            return diagonal
        others = core - diagonal
        away = others - others.mean()
        # By hand, since torch warns of the deviation of a single entry.
        deviation = (away.square().sum() / max(core.numel() - 1, 1)).sqrt()
        limit = _WIDTH * deviation / (tasks if self.divide_by_tasks else 1)
        return diagonal + torch.where(away.abs() <= limit, others, 0)
