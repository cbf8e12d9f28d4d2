import pytest
import torch

from lwptv_lightning.functional import factored_error, low_rank_factors


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decaying(m, n):
    """A matrix whose singular values fall as those of real task vectors: slowly."""
    left, right = torch.linalg.qr(random(m, n))[0], torch.linalg.qr(random(n, n, seed=1))[0]
    return left * torch.arange(1, n + 1).double().pow(-0.5) @ right


def least_error(matrix, rank):
    return float(torch.linalg.svdvals(matrix)[rank:].square().sum().sqrt())


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_the_factors_are_the_best_of_their_rank(shape, rank):
    matrix = random(*shape)
    b, a = low_rank_factors(matrix, rank)
    assert b.shape == (shape[0], rank)
    assert a.shape == (rank, shape[1])
    assert factored_error(matrix, b, a) == pytest.approx(least_error(matrix, rank), rel=1e-10)
    assert float(b.norm()) == pytest.approx(float(a.norm()))


@pytest.mark.parametrize("rank", [None, 5, 6, 10**30])
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (5, 5)])
@pytest.mark.parametrize("size", [1.0, 1e-12, 1e12])
def test_at_full_rank_the_product_has_the_matrix_bits(shape, rank, size):
    matrix = (random(*shape) * size).float()
    b, a = (factor.float() for factor in low_rank_factors(matrix, rank))
    assert torch.equal(b @ a, matrix)
    assert factored_error(matrix, b, a) == 0
    assert 0.1 < float(b.abs().max() / a.abs().max()) < 10


def test_a_share_keeps_no_less_of_the_squared_norm_and_no_rank_more_than_that_needs():
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0]))  # squares 9, 4, 1 of 14
    for share, rank in [(0.5, 1), (9 / 14 - 1e-9, 1), (9 / 14 + 1e-9, 2), (0.92, 2), (0.93, 3), (1 - 1e-12, 3)]:
        assert len(low_rank_factors(matrix, share)[1]) == rank


def test_directions_without_weight_are_left_out():
    matrix = random(9, 2) @ random(2, 8)
    b, a = low_rank_factors(matrix, 5)
    assert len(a) == 2
    assert factored_error(matrix, b, a) < 1e-12
    assert [tuple(each.shape) for each in low_rank_factors(torch.zeros(3, 4), 2)] == [(3, 0), (0, 4)]


def test_a_few_triplets_of_a_large_matrix_are_as_good_and_always_the_same():
    matrix = decaying(900, 800)
    b, a = low_rank_factors(matrix, 8)
    assert factored_error(matrix, b, a) <= 1.0002 * least_error(matrix, 8)
    assert all(map(torch.equal, (b, a), low_rank_factors(matrix.clone(), 8)))
    assert torch.equal(torch.get_rng_state(), torch.get_rng_state())


def test_the_error_is_that_of_the_product():
    matrix, b, a = random(4, 3), random(4, 2, seed=1), random(2, 3, seed=2)
    assert factored_error(matrix, b, a) == pytest.approx(float((matrix - b @ a).norm()))
    square = random(4, 4, seed=3)
    assert factored_error(matrix, square, matrix) == pytest.approx(float((matrix - square @ matrix).norm()))
    for diagonal in (torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])), torch.zeros(4, 4)):
        assert factored_error(matrix, diagonal, matrix) == pytest.approx(
            float((matrix - diagonal @ matrix.float()).norm())
        )
