"""Linear algebra that several merging rules share: directions, singular triplets, polar factors.

Shapes: T tasks; ``tau`` is a stack of task vectors ``(T, *shape)``. Decompositions run in float64: they do not
exist in half precision, and float32 would blur which directions a matrix has at all.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NEGLIGIBLE = 1e-6
"""What is this much smaller than the rest is rounding of float32 weights, not a direction."""


def directions(tau: Tensor) -> tuple[Tensor, Tensor]:
    """Split a stack into rows of norm 1, ``(T, *shape)``, and their norms, ``(T,)``; a zero row has the direction zero.

    Example:
        >>> units, norms = directions(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> units, norms
        (tensor([[0.6000, 0.8000], [0.0000, 0.0000]]), tensor([5., 0.]))
    """
    rows = tau.reshape(len(tau), -1)
    # In float64, since squares of small float32 numbers vanish.
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).to(rows.dtype)
    units = torch.where(norms[:, None] > 0, rows / norms[:, None], 0)
    return units.reshape(tau.shape), norms


class Triplets(NamedTuple):
    """Singular triplets of one or more matrices, the strongest first; those without weight are zero, vectors too.

    Attributes:
        left: Left vectors, ``(..., m, k)``.
        values: Singular values, ``(..., k)``.
        right: Right vectors, ``(..., k, n)``.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def first(self, count: int) -> "Triplets":
        """Return the ``count`` strongest."""
        return Triplets(self.left[..., :count], self.values[..., :count], self.right[..., :count, :])


def decompose(matrix: Tensor) -> Triplets:
    """Return all singular triplets of one or more matrices ``(..., m, n)``, in float64; see `leading_triplets`.

    Example:
        >>> decompose(torch.ones(2, 2)).values.round()
        tensor([2., 0.], dtype=torch.float64)
    """
    return leading_triplets(matrix)


def leading_triplets(
    matrix: Tensor, count: int | None = None, largest: Tensor | None = None, source: torch.dtype | None = None
) -> Triplets:
    """Return the leading singular triplets of one or more matrices, in float64.

    Triplets without weight are zero, vectors too: a rule that weighs all directions alike would take them for real.

    Weights of float32 or less are decomposed by the eigenvectors of the smaller of ``M M^T`` and ``M^T M``, which takes
    three quarters to a fifth of the time. Squares lose what is small: a direction of singular value s comes out with an
    error of a few ``1e-16 / s^2``, where the largest is 1: 1e-10 at 1e-3, 1e-4 at 1e-6, at any scale. The
    rounding of the weights themselves has moved it by ``6e-8 / s``, which is more than that down to `NEGLIGIBLE`.
    Weights of float64 have their singular value decomposition.

    Args:
        matrix: ``(..., m, n)``.
        count: How many triplets k, at most ``min(m, n)``; all by default.
        largest: The singular value beside which others count as zero, ``(...)``; by default the matrix's own largest.
        source: The dtype of the weights that the matrix was computed from; its own by default.

    Returns:
        Left vectors ``(..., m, k)``, singular values ``(..., k)`` and right vectors ``(..., k, n)``.

    Example:
        >>> leading_triplets(torch.ones(2, 2))[1].round()
        tensor([2., 0.], dtype=torch.float64)
    """
    # Laid out alike wherever it comes from, so that the bits are a function of the values.
    exact = matrix.contiguous().double()
    if not exact.any():
        left, values, right = _nothing(exact)
    elif (source or matrix.dtype) == torch.float64:
        left, values, right = torch.linalg.svd(exact, full_matrices=False)
    else:
        left, values, right = _by_squares(exact)
    reference = values[..., :1] if largest is None else largest.double()[..., None]
    real = values > NEGLIGIBLE * reference
    left, values, right = left * real[..., None, :], values * real, right * real[..., None]
    return Triplets(left[..., :count], values[..., :count], right[..., :count, :])


def _nothing(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    *several, rows, columns = matrix.shape
    rank = min(rows, columns)
    shapes = ((*several, rows, rank), (*several, rank), (*several, rank, columns))
    left, values, right = map(matrix.new_zeros, shapes)
    return left, values, right


def _by_squares(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return singular triplets by the eigenvectors of the smaller Gram matrix."""
    if matrix.shape[-2] > matrix.shape[-1]:
        left, values, right = _by_squares(matrix.mT)
        return right.mT, values, left.mT
    # By a power of two, which rounds nothing: squares of float64 may vanish or overflow.
    exponent = torch.frexp(matrix.abs().amax(dim=(-2, -1), keepdim=True))[1].clamp(-1000, 1000).double()
    matrix = matrix * torch.exp2(-exponent)
    left = torch.linalg.eigh(matrix @ matrix.mT)[1]
    right = left.mT @ matrix
    # Their lengths are nearer to the singular values than roots of the eigenvalues, which may be negative.
    values, order = torch.linalg.vector_norm(right, dim=-1).sort(dim=-1, descending=True, stable=True)
    left = left.take_along_dim(order[..., None, :], dim=-1)
    right = right.take_along_dim(order[..., None], dim=-2)
    return left, values * torch.exp2(exponent).squeeze(-1), right * inverses(values)[..., None]


def inverse_root(matrix: Tensor, source: torch.dtype | None = None) -> Tensor:
    """Return ``(M M^T)^(-1/2)`` without the directions that M has not, in float64: with M behind it, its polar factor.

    ``source`` is as in `leading_triplets`.

    Example:
        >>> inverse_root(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
        tensor([[0.5000, 0.0000],
                [0.0000, 0.0000]], dtype=torch.float64)
    """
    left, values, _ = leading_triplets(matrix, source=source)
    return left * inverses(values) @ left.mT


def inverses(values: Tensor) -> Tensor:
    """Return ``1 / values``, and 0 for 0.

    Example:
        >>> inverses(torch.tensor([2.0, 0.0]))
        tensor([0.5000, 0.0000])
    """
    return torch.where(values != 0, 1 / values, 0)


def polar_factor(matrix: Tensor, source: torch.dtype | None = None) -> Tensor:
    """Return the nearest matrix whose non-zero singular values are all 1, in float64; zero stays zero.

    ``source`` is as in `leading_triplets`.

    Example:
        >>> polar_factor(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
        tensor([[1., 0.],
                [0., 0.]], dtype=torch.float64)
    """
    left, _, right = leading_triplets(matrix, source=source)
    return left @ right
