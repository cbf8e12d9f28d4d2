"""The shared basis against the singular vectors of the task vectors side by side, in numpy and float64."""

import numpy as np
import pytest
import torch

from lwptv_lightning.functional import common_basis, common_space

EPS = np.finfo(np.float64).eps


def stack_of(tasks, shape, rank=None, decay=0.0, scale=1.0, seed=0, dtype=torch.float32):
    """Task vectors with singular values from ``scale`` down to ``scale * 10**-decay``."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(shape) if rank is None else rank

    def orthonormal(rows):
        return torch.linalg.qr(torch.randn(rows, rank, generator=generator, dtype=torch.float64))[0]

    values = scale * torch.logspace(0, -decay, rank, dtype=torch.float64)
    made = [orthonormal(shape[0]) * values @ orthonormal(shape[1]).T for _ in range(tasks)]
    return torch.stack(made).to(dtype)


def svd(tau):
    left, values, _ = np.linalg.svd(np.concatenate([*tau.double().numpy()], axis=1), full_matrices=False)
    return left, values


@pytest.fixture
def decomposed(monkeypatch):
    """How often stacks were decomposed themselves."""
    calls = []
    usual = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *given, **options: calls.append(1) or usual(*given, **options))
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("tasks", "shape", "rank"),
    [(1, (6, 4), None), (2, (5, 5), None), (8, (4, 9), None), (20, (7, 3), None), (2, (40, 6), None), (3, (16, 12), 2)],
)
def test_spans_what_the_singular_vectors_span(tasks, shape, rank, dtype, decomposed):
    tau = stack_of(tasks, shape, rank, decay=1, dtype=dtype)
    basis = common_basis(tau)
    left, values = svd(tau)
    left = left[:, values > 1e-5]
    assert len(decomposed) == (dtype == torch.float64)
    assert basis.dtype == torch.float64
    assert basis.shape == left.shape
    np.testing.assert_allclose(basis.T @ basis, np.eye(left.shape[1]), atol=1e-10)
    np.testing.assert_allclose(basis @ basis.T, left @ left.T, atol=1e-10)
    # Directions and their order too, where singular values differ.
    strong = np.diff(values, append=0)[: left.shape[1]] < -1e-3
    agreement = np.abs((basis.numpy() * left).sum(0))[strong]
    np.testing.assert_allclose(agreement, 1, atol=1e-10)


def test_the_largest_entry_of_each_direction_is_positive():
    basis = common_basis(stack_of(3, (6, 4)))
    assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("shape", [(12, 9), (60, 5)])
def test_no_float32_is_too_small_or_too_large(scale, shape):
    tau = stack_of(4, shape, rank=3, scale=scale)
    left, values = svd(tau)
    basis = common_basis(tau)
    assert basis.shape[1] == (values > 1e-5).sum()
    kept = left[:, values > 1e-5]
    strong = values[values > 1e-5] > 1e-3 * values[0]  # rounding of float32 weights is far weaker
    np.testing.assert_allclose(basis[:, strong] @ basis[:, strong].T, kept[:, strong] @ kept[:, strong].T, atol=1e-7)


@pytest.mark.parametrize("shape", [(24, 16), (80, 12)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0, 100.0])
def test_at_the_cut_off_what_counts_is_what_a_decomposition_says(shape, scale):
    for seed in range(20):
        # Values 1e-5 are some of many in a row around it.
        tau = stack_of(3, shape, decay=np.log10(scale / 1e-6), scale=scale, seed=seed)
        assert common_basis(tau).shape[1] == (svd(tau)[1] > 1e-5).sum()


@pytest.mark.parametrize(("tasks", "shape"), [(5, (48, 96)), (5, (96, 48)), (2, (200, 20)), (20, (16, 400))])
def test_squares_are_off_by_no_more_than_is_said(tasks, shape):
    for rank, scale in [(None, 1.0), (3, 50.0), (None, 1e-3)]:
        tau = stack_of(tasks, shape, rank, decay=2, scale=scale).double()
        beside = torch.cat([*tau], dim=1)
        squares = beside @ beside.T if shape[0] <= beside.shape[1] else beside.T @ beside
        found = torch.linalg.eigvalsh(squares).flip(0)[: min(beside.shape)]
        values = torch.linalg.svdvals(beside)
        off = (found - values**2).abs().max() / (EPS * values[0] ** 2)
        assert off <= 2 * np.sqrt(max(beside.shape))


def test_a_value_that_rounding_could_move_over_the_cut_off_is_found_by_a_decomposition(decomposed):
    for value, doubtful in [(1e-5, True), (1.000001e-5, True), (1.1e-5, False), (0.9e-5, False)]:
        decomposed.clear()
        basis = common_basis(torch.tensor([[[1.0, 0.0], [0.0, value]]]))
        assert (len(decomposed) > 0) == doubtful
        assert basis.shape[1] == 1 + (float(np.float32(value)) > 1e-5)
    # An empty direction is at zero, from which 1e-10 cannot be told beside squares of 1e10.
    for scale, doubtful in [(10.0, False), (1e5, True)]:
        decomposed.clear()
        assert common_basis(torch.tensor([[[scale, 0.0], [0.0, 0.0]]])).shape[1] == 1
        assert (len(decomposed) > 0) == doubtful


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (3, 2)])
def test_nothing_has_no_direction(shape):
    assert common_basis(torch.zeros(2, *shape)).shape == (shape[0], 0)


def test_the_cut_off_is_the_authors():
    assert common_space.LEAST_SINGULAR_VALUE == 1e-5
