"""Bases that the tasks of a matrix share: their leading singular vectors side by side, made orthogonal together."""

from typing import NamedTuple

import torch
from torch import Tensor

from lwptv_lightning.functional.matrices import NEGLIGIBLE, Triplets, polar_factor


class TaskBases(NamedTuple):
    """Directions of T tasks, k of each, those of a task side by side; directions that there are not are zero.

    Attributes:
        left: ``(m, T*k)``.
        right: ``(T*k, n)``.
    """

    left: Tensor
    right: Tensor

    def core(self, matrix: Tensor) -> Tensor:
        """Return a matrix in the two bases, ``left^T M right^T``: ``(m, n) -> (T*k, T*k)``, in float64."""
        return self.left.mT @ matrix.double() @ self.right.mT

    def of_core(self, core: Tensor) -> Tensor:
        """Return the matrix that a core stands for, ``left C right``: ``(T*k, T*k) -> (m, n)``."""
        return self.left @ core @ self.right

    def of_blocks(self, blocks: Tensor) -> Tensor:
        """Return the matrix of a core that has T blocks on its diagonal alone: ``(T, k, k) -> (m, n)``."""
        lefts = self.left.chunk(len(blocks), dim=1)
        return torch.cat([left @ block for left, block in zip(lefts, blocks, strict=True)], dim=1) @ self.right


def task_bases(triplets: Triplets, source: torch.dtype | None = None) -> TaskBases:
    """Return the polar factors of the tasks' left vectors side by side, and of their right ones.

    Where tasks share directions, or have fewer than k, these factors are of a lower rank. Tasks whose directions
    differ by rounding alone have bases that rounding chooses; where they are equal they have none of a difference.

    Args:
        triplets: The k strongest of each of T matrices: ``(T, m, k)``, ``(T, k)`` and ``(T, k, n)``.
        source: The dtype of the weights that they were computed from, as in `leading_triplets`.

    Example:
        >>> from lwptv_lightning.functional import decompose
        >>> equal = task_bases(decompose(torch.tensor([[[2.0]], [[2.0]]])))
        >>> (equal.left.abs() * 2**0.5).round()
        tensor([[1., 1.]], dtype=torch.float64)
    """
    left, right = torch.cat([*triplets.left], dim=1), torch.cat([*triplets.right], dim=0)
    return TaskBases(polar_factor(left, source), polar_factor(right, source))


def with_plain_signs(triplets: Triplets) -> Triplets:
    """Return triplets whose left vectors have a positive largest entry, the right ones turned with them.

    A pair of singular vectors is defined but for a common sign, which libraries choose differently. Of entries that are
    as large as the largest but for 1e-6 of it, the first counts. Vectors of zeros stay.

    Example:
        >>> pair = Triplets(torch.tensor([[0.6], [-0.8]]), torch.ones(1), torch.tensor([[0.0, 1.0]]))
        >>> with_plain_signs(pair).left.T, with_plain_signs(pair).right
        (tensor([[-0.6000,  0.8000]]), tensor([[-0., -1.]]))
    """
    magnitudes = triplets.left.abs()
    largest = magnitudes >= (1 - NEGLIGIBLE) * magnitudes.amax(-2, keepdim=True)
    first = largest.byte().argmax(-2, keepdim=True)
    signs = triplets.left.gather(-2, first).sign()
    return Triplets(triplets.left * signs, triplets.values, triplets.right * signs.mT)
