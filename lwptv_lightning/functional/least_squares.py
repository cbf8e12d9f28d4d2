"""The matrix that does to the rows of every task what the task's own does: least squares, in float64.

The rows speak for a layer's inputs, since a task vector's rows are sums of the inputs that it was trained on.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lwptv_lightning.functional.ranked import ranked_values
from lwptv_lightning.functional.trims import trim_


def own_row_terms(
    matrices: Tensor, rtol: float | None = None, *, unit: bool = False, kept: float | None = None
) -> Iterator[Tensor]:
    """Yield the terms, one for each task, of the matrix X that treats the tasks' own rows as their own matrices do.

    X minimises ``sum_t |(X - D_t) S_t^T|_F^2``, where the rows ``S_t`` are those of ``D_t``. Where a single task is
    not zero, and all of its rows stay, X is its matrix.

    Args:
        matrices: D, ``(T, m, n)``; may be written to.
        rtol: In [0, 1); see `row_terms`. By default ``n`` times the rounding of float32.
        unit: Whether ``S_t`` is divided by its task's norm ``|D_t|_F``, so that all tasks count alike.
        kept: The fraction of the elements of ``S_t`` that stay, in (0, 1]: the ``max(round(kept * m * n), 1)`` largest
            magnitudes, and what ties with the last of them; the others are zero. All by default.

    Yields:
        ``(m, n)`` in float64.

    Example:
        >>> sum(own_row_terms(torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]]])))
        tensor([[1.8000, 0.0000]], dtype=torch.float64)
    """
    tasks = (matrices.flatten(1) != 0).any(1).sum()
    if tasks == 0 or (tasks == 1 and kept in (None, 1)):
        yield from matrices.double()
        return
    # Brought to size 1, so that no power of the entries leaves the range of float64.
    peak = matrices.abs().max().double()
    targets = matrices.double().div_(peak)
    rows = targets
    if kept is not None:
        magnitudes = rows.flatten(1).abs()
        count = max(round(kept * magnitudes.shape[1]), 1)
        least = [ranked_values(row, [len(row) - count + 1])[0] for row in magnitudes]
        rows = trim_(rows.clone(), rows.new_tensor(least))
    if unit:
        norms = torch.linalg.vector_norm(targets, dim=(1, 2), keepdim=True)
        rows = torch.where(norms > 0, rows / norms, 0)
    if rtol is None:
        rtol = matrices.shape[-1] * torch.finfo(torch.float32).eps
    for term in row_terms(targets, rows, rtol):
        yield term.mul_(peak)


def row_terms(targets: Tensor, rows: Tensor, rtol: float) -> Iterator[Tensor]:
    """Yield the terms of ``X = sum_t D_t C_t (sum_t C_t)^+`` with the Gram matrices ``C_t = S_t^T S_t``.

    The pseudo-inverse is that of the smaller of two matrices with the same eigenvalues: the summed Gram matrix
    ``(n, n)``, or ``S S^T``, ``(T r, T r)``, of the rows of all tasks in a stack S. For ``S (S^T S)^+ = (S S^T)^+ S``,
    of which the rows of a task are called ``W_t``, and ``X = sum_t D_t S_t^T W_t``.

    Args:
        targets: D, ``(T, m, n)`` in float64.
        rows: S, ``(T, r, n)`` in float64, not all zero.
        rtol: Eigenvalues that are at most so large beside the largest count as zero, in [0, 1), as do those that
            float64 cannot tell from zero.

    Yields:
        ``(m, n)`` in float64.
    """
    stacked = rows.flatten(0, 1)
    is_wide = len(stacked) < stacked.shape[1]
    values, vectors = torch.linalg.eigh(stacked @ stacked.T if is_wide else stacked.T @ stacked)
    real = values > max(rtol, len(values) * torch.finfo(torch.float64).eps) * values[-1]
    vectors, inverse = vectors[:, real], 1 / values[real]
    left, right = (vectors, vectors.T @ stacked) if is_wide else (stacked @ vectors, vectors.T)
    weighed = (left * inverse) @ right
    for target, own, weighed_own in zip(targets, rows, weighed.chunk(len(rows)), strict=True):
        yield torch.linalg.multi_dot([target, own.T, weighed_own])
