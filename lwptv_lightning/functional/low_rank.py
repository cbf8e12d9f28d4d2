"""Two factors whose product is a matrix, or the nearest one of a lower rank."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGE, _OVERSAMPLED, _MOST_PASSES = 768, 16, 24
"""The side from which on a few triplets are sought at random; how many more than wanted; how often at most."""
_SETTLED = 1e-4
"""Share of the squared error by which a further pass would have to lessen it."""
_NOTHING = 1e-12
"""A singular value this small beside the largest is rounding of float64."""


def low_rank_factors(matrix: Tensor, rank: int | float | None) -> tuple[Tensor, Tensor]:
    """Return ``B`` and ``A`` with ``B A`` the best approximation of a matrix, in the Frobenius norm.

    Args:
        matrix: ``(m, n)``, finite and floating.
        rank: A whole number of at least 1: the most that the product has. A fraction in (0, 1): the least rank that
            keeps this share of the squared norm. ``None``, or a number of at least ``min(m, n)``: the matrix itself,
            which needs no decomposition.

    Returns:
        ``(m, r)`` and ``(r, n)``; r is 0 for a matrix of zeros. Where the matrix is decomposed, both are of float64 and
        of the same norm, and directions without weight are left out.

    The decomposition is exact, but for a few triplets of a matrix of 768 rows and columns or more: a random start is
    improved until a pass lessens the squared error by less than 1e-4 of itself. The start is always the same.

    Example:
        >>> b, a = low_rank_factors(torch.diag(torch.tensor([4.0, 1.0])), 1)
        >>> (b @ a).abs()
        tensor([[4., 0.],
                [0., 0.]], dtype=torch.float64)

    Reference:
        Halko et al., Finding structure with randomness, arXiv 0909.4061: algorithm 4.4, with a test of when to stop.
    """
    smaller = min(matrix.shape)
    if not bool(matrix.any()):
        return matrix.new_zeros(len(matrix), 0), matrix.new_zeros(0, matrix.shape[1])
    if rank is None or rank >= smaller:
        return _itself(matrix)
    matrix = matrix.double()
    is_share = rank < 1
    if is_share or smaller < _LARGE or 4 * (rank + _OVERSAMPLED) > smaller:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        left, values, right = _leading(matrix, int(rank))
    count = _needed(values, float(rank)) if is_share else int(rank)
    count = min(count, int((values > _NOTHING * values[0]).sum()))
    root = values[:count].sqrt()
    return left[:, :count] * root, root[:, None] * right[:count]


def _itself(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix and the identity, scaled alike by a power of two, so that their product has the matrix's bits."""
    _, exponent = torch.frexp(matrix.abs().max())
    scale = 2.0 ** (int(exponent) // 2)
    identity = torch.eye(min(matrix.shape), dtype=matrix.dtype, device=matrix.device) * scale
    return (identity, matrix / scale) if matrix.shape[0] <= matrix.shape[1] else (matrix / scale, identity)


def _needed(values: Tensor, share: float) -> int:
    kept = values.square().cumsum(0)
    return int((kept < share * kept[-1]).sum()) + 1


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading singular triplets, found by iterating on a random subspace."""
    random = torch.Generator().manual_seed(0)
    count = rank + _OVERSAMPLED
    start = torch.randn(matrix.shape[1], count, generator=random, dtype=torch.float64).to(matrix.device)
    basis, found = torch.linalg.qr(matrix @ start)[0], 0.0
    total = float(matrix.square().sum())
    for _ in range(_MOST_PASSES):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis)[0])[0]
        left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        before, found = found, float(values[:rank].square().sum())
        if found - before <= _SETTLED * max(total - found, 0.0) + _NOTHING * total:
            break
    return basis @ left, values, right


def factored_error(matrix: Tensor, b: Tensor, a: Tensor) -> float:
    """Return the Frobenius norm of a matrix minus the product of two factors, computed in float64.

    Example:
        >>> factored_error(torch.eye(2), torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 0.0]]))
        1.0
    """
    b, a = b.double(), a.double()
    return float(torch.linalg.vector_norm(matrix.double() - _product(b, a)))


def _product(b: Tensor, a: Tensor) -> Tensor:
    if _is_diagonal(b):  # as of a matrix that was not decomposed, whose product would take long
        return b.diagonal()[:, None] * a
    return b * a.diagonal() if _is_diagonal(a) else b @ a


def _is_diagonal(matrix: Tensor) -> bool:
    return matrix.shape[0] == matrix.shape[1] and int(matrix.count_nonzero()) == int(matrix.diagonal().count_nonzero())
