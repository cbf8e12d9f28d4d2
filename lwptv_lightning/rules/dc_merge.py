"""DC-Merge: directionally consistent merging."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from lwptv_lightning.functional import TaskBases, agreeing_parts, elect_signs, ranked_values, task_bases
from lwptv_lightning.registry import choice, number, patterns, whole
from lwptv_lightning.rules._base import MergeContext, MergeRule, is_matrix, merge_rule

_ROUNDING = 1e-9
"""What is this much smaller beside what it is compared with is rounding of float64."""


@merge_rule("dc_merge", paper="https://arxiv.org/abs/2603.06242")
@dataclass(frozen=True, kw_only=True)
class DCMerge(MergeRule):
    """Elect signs between tasks in directions that all share, and keep what each task's own directions have of them.

    Each task keeps its k strongest triplets, ``E_t = U_t diag(s_t) V_t``, with singular values perhaps smoothed. With
    those of all tasks side by side, ``P = polar(U)`` and ``Q = polar(V)``, the core is ``M_t = P^T E_t Q^T``. Of each
    core the ``max(1, int(keep * size))`` largest entries stay, and whatever ties with the least of them. At each place
    the sign of the sum over tasks is elected, and the mean taken over the tasks whose entry has it; a sum of zero gives
    zero. Of the result C the T blocks ``k x k`` on the diagonal stay: ``P C Q``. Matrices are 2-D tensors and the
    weights ``(out, in, 1, 1)`` of 1x1 convolutions. Other tensors, and matrices too small for one triplet each, are
    averaged.

    The default ``keep`` is for large matrices: where ``min(shape)`` is below 45 one entry of each task stays, and below
    1000 even a single task loses directions. Equal tasks share their directions. Where task vectors are parallel but
    for rounding, this chooses a part of the bases, and so of the result. The source chooses the scale among 0.1, 0.2,
    ..., 3 on validation data.

    Args:
        smoothing: What becomes of a task's k singular values. ``"none"``: they stay. ``"average"``: all become their
            mean. ``"linear"``: they fall in equal steps from q to 1, times what keeps their sum, where q is
            ``min(rho, s_1 / s_k)``.
        rho: The most that q is.
        rank: k, at most ``min(shape)``; by default ``min(shape) // T``.
        keep: The fraction of the core's entries that stays of each task. The core's size is ``(T*k)^2`` with a rank,
            else ``min(shape)^2``.
        exclude: Globs of tensor names that are averaged although they are matrices.

    Example:
        >>> tau = torch.tensor([[[4.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 2.0]]])
        >>> DCMerge().combine(tau, MergeContext("w", ("a", "b")))
        tensor([[4., 0.],
                [0., 2.]])

    Reference:
        DC-Merge, arXiv 2603.06242, by the authors' code for full weights, which smooths nothing. With ``rank=16`` and
        ``"average"`` or ``"linear"`` it is their code for LoRA. Both average names that hold ``text_projection``:
        ``exclude=("*text_projection*",)``. Deviations: directions without weight, those of a pruned task among them,
        are zero, where the authors' code has arbitrary ones; they count among the k values that are smoothed. Entries
        below 1e-9 of a core's largest are absent, and entries tie and sums are zero up to 1e-9, where rounding decides
        there. ``int(min(shape) * (1 / T))`` is one short there for some T; a matrix smaller than T is averaged.
    """

    decomposes_tasks = True
    tensors = "2-D tensors and 1x1 convolutions as matrices, where min(shape) >= T or with a rank; others averaged"

    smoothing: str = choice("none", ("none", "average", "linear"))
    rho: float = number(5.0, "[1, inf)")
    rank: int | None = whole(None, at_least=1)
    keep: float = number(1e-3, "(0, 1]")
    exclude: tuple[str, ...] = patterns(())

    def treats_as_matrix(self, name: str, shape: Sequence[int], tasks: int) -> bool:
        """Tell whether a tensor is a matrix from which each task can have a triplet."""
        return is_matrix(shape, name, exclude=self.exclude) and min(shape[:2]) >= (tasks if self.rank is None else 1)

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return each task's share of the means, with the elected signs and the bases held fast, ``(T, *shape)``."""
        if (matrices := self.as_matrices(tau, context)) is None:
            return tau / len(tau)
        bases, blocks = self._elected(matrices, context)
        return torch.stack([*map(bases.of_blocks, blocks)]).to(tau.dtype).reshape(tau.shape)

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Merge one stack, ``(T, *shape) -> (*shape)``."""
        if (matrices := self.as_matrices(tau, context)) is None:
            return tau.mean(0)
        bases, blocks = self._elected(matrices, context)
        return bases.of_blocks(blocks.sum(0)).to(tau.dtype).reshape(tau.shape[1:])

    def _elected(self, matrices: Tensor, context: MergeContext) -> tuple[TaskBases, Tensor]:
        """Return the bases and each task's part of the merged core's T blocks, ``(T, T, k, k)``."""
        tasks, smaller = len(matrices), min(matrices.shape[1:])
        count = smaller // tasks if self.rank is None else min(self.rank, smaller)
        number = max(1, int(self.keep * (smaller if self.rank is None else tasks * count) ** 2))
        triplets = context.decompose(matrices).first(count)
        bases = task_bases(triplets, matrices.dtype)
        found = zip(triplets.left, self._smoothed(triplets.values), triplets.right, strict=True)
        cores = (bases.left.mT @ left * values @ (right @ bases.right.mT) for left, values, right in found)
        blocks = torch.stack([_diagonal_blocks(_keep_largest(core, number), count) for core in cores])
        blocks.masked_fill_(blocks.sum(0).abs() <= _ROUNDING * blocks.abs().sum(0), 0)
        return bases, agreeing_parts(blocks, elect_signs(blocks, 0), "mean")

    def _smoothed(self, values: Tensor) -> Tensor:
        """Return what becomes of singular values, ``(T, k) -> (T, k)``."""
        if self.smoothing == "none":
            return values
        if self.smoothing == "average":
            return values.mean(1, keepdim=True).expand_as(values)
        first, last = values[:, :1], values[:, -1:]
        start = torch.where(last > 0, first / last, inf).clamp(max=self.rho)
        weights = start + (1 - start) * torch.linspace(0, 1, values.shape[1], dtype=values.dtype, device=values.device)
        return weights * (values.sum(1, keepdim=True) / weights.sum(1, keepdim=True))


def _keep_largest(core: Tensor, number: int) -> Tensor:
    """Zero all but a number of the largest entries of a core, ``(c, c)``, and those that tie with the least."""
    magnitudes = core.abs()
    (least,) = ranked_values(magnitudes.flatten(), [max(core.numel() - number, 0) + 1])
    limit = max((1 - _ROUNDING) * least, _ROUNDING * float(magnitudes.max()))
    return torch.where(magnitudes >= limit, core, 0)


def _diagonal_blocks(core: Tensor, size: int) -> Tensor:
    """Return the blocks on the diagonal, ``(T*k, T*k) -> (T, k, k)``."""
    return torch.stack([core[start : start + size, start : start + size] for start in range(0, len(core), size)])
