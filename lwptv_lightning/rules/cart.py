"""CART: low-rank approximations of task vectors that are centred around their mean."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lwptv_lightning.functional import sum_tasks
from lwptv_lightning.registry import fraction, number, patterns
from lwptv_lightning.rules._base import MergeContext, MergeRule, is_matrix, is_pointwise, merge_rule

LINEAR_WEIGHTS_OF_BLOCKS = (
    "*attn*weight",
    "*[aA]ttention*weight",
    "*xca*weight",
    "*mlp*weight",
    "*ffn*weight",
    "*feed_forward*weight",
    "*DenseReluDense*weight",
    "*intermediate.dense.weight",
    "*output.dense.weight",
    "*layer*.fc[12].weight",
    "*layer*.linear[12].weight",
)
"""What attention and the MLP of a transformer's block are called by timm, open_clip, torch and transformers."""

_BIASES = "*bias*"
"""Tables of relative positions, which may end in ``bias.weight``, are no layers."""


@merge_rule("cart", paper="https://arxiv.org/abs/2412.12153")
@dataclass(frozen=True, kw_only=True)
class CART(MergeRule):
    """Average the models, and add what each task has of its own around the average, at low rank.

    With the mean ``D`` of the task vectors, a matrix becomes ``D + scale * sum_t low(tau_t - D)``, where ``low`` keeps
    the ``max(1, floor(rank_ratio * min(shape)))`` strongest singular triplets. Other tensors are averaged. Two task
    vectors lie opposite each other around their mean, and one lies there, so that of these it is the plain average; a
    `UserWarning` says so of two. It is the average, too, with a ratio of 1, where what is added cancels, and of 0. A
    task whose vector is zero, or pruned, counts: its part is ``low(-D)``, what the others have, with the other sign.

    Args:
        rank_ratio: How much of the rank is kept. The authors' code has .12 for 8 tasks, .16 for 14 and .32 for 20.
        scale: The coefficient of the sum; the recipe's scale multiplies it and the mean. The authors' code has 2.0 for
            8 tasks, 1.5 for 14 and 1.9 for 20.
        include: Globs of tensor names; the 2-D ones and the 1x1 convolutions among them are matrices. By default the
            linear layers of transformer blocks, by the names that timm, open_clip, torch and transformers give them,
            and all 1x1 convolutions; ``("*",)`` is all matrices.
        exclude: Globs of tensor names that are averaged although they are such matrices.

    Example:
        >>> tau = torch.tensor([[[9.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 6.0]], [[0.0, 0.0], [0.0, 0.0]]])
        >>> CART(rank_ratio=0.5).combine(tau, MergeContext("mlp.fc1.weight", ("a", "b", "c")))
        tensor([[ 9.,  0.],
                [ 0., 10.]])

    Reference:
        Choi et al., Revisiting weight averaging for model merging, arXiv 2412.12153. Deviations: the authors' code
        takes 2-D tensors whose names hold ``attn`` or ``mlp``, and decomposes tensors of more dimensions, had such
        names some, as stacks of matrices. It rounds the product of ratio and rank down as it is computed, so that .29
        of 100 is 28; here it is 29.
    """

    tensors = "2-D tensors and 1x1 convolutions of include as matrices; others averaged"

    rank_ratio: float = fraction(0.12)
    scale: float = number(2.0, "(-inf, inf)")
    include: tuple[str, ...] | None = patterns(None)
    exclude: tuple[str, ...] = patterns(())

    def doubt(self, tasks: int) -> str | None:
        """Say that two tasks are averaged."""
        told = "cart of two tasks is their plain average, whatever its rank_ratio and scale"
        return f"{told}: what it adds of the one is what it takes of the other." if tasks == 2 else None

    def treats_as_matrix(self, name: str, shape: Sequence[int], tasks: int) -> bool:
        """Tell whether a tensor is one of the wanted matrices."""
        if self.include is not None:
            return is_matrix(shape, name, self.include, self.exclude)
        is_layer = is_matrix(shape, name, LINEAR_WEIGHTS_OF_BLOCKS, (*self.exclude, _BIASES))
        return is_layer or (is_pointwise(name, shape) and is_matrix(shape, name, exclude=self.exclude))

    def parts(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Return ``tau_t / T + scale * low(tau_t - D)``, ``(T, *shape)``."""
        made = tau / len(tau)
        if (matrices := self.as_matrices(tau, context)) is not None:
            for part, low in zip(made, self._low(matrices, context), strict=True):
                part += (self.scale * low).reshape(part.shape)
        return made

    def combine(self, tau: Tensor, context: MergeContext) -> Tensor:
        """Merge one stack, ``(T, *shape) -> (*shape)``."""
        matrices = self.as_matrices(tau, context)
        if matrices is None or self._rank(matrices) in (0, min(matrices.shape[1:])):
            return sum_tasks(tau / len(tau))
        total = matrices.mean(0, dtype=torch.float64)
        for low in self._low(matrices, context):
            total.add_(low, alpha=self.scale)
        return total.to(tau.dtype).reshape(tau.shape[1:])

    def _low(self, matrices: Tensor, context: MergeContext) -> Iterator[Tensor]:
        """Make what is added of each task, before the scale, one by one: ``(m, n)`` in float64."""
        mean, rank = matrices.mean(0, dtype=torch.float64), self._rank(matrices)
        for matrix in matrices:
            centred = (matrix - mean).to(matrices.dtype)  # rounded, so that what is left of equal tasks is zero
            if rank == 0 or rank == min(mean.shape):
                yield centred.double() if rank else torch.zeros_like(mean)
                continue
            left, values, right = context.decompose(centred).first(rank)
            yield left * values @ right

    def _rank(self, matrices: Tensor) -> int:
        # A little is added because .28 * 25 is not 7 in floating point, as everywhere where a ratio counts something.
        own = min(matrices.shape[1:])
        return min(own, max(1, math.floor(self.rank_ratio * own + 1e-9))) if self.rank_ratio else 0
