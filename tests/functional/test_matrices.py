import math

import pytest
import torch
from _helpers.small_matrices import assert_near, polar, random_stack

from lwptv_lightning.functional import NEGLIGIBLE, directions, leading_triplets, polar_factor


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_directions_times_lengths_are_the_stack(shape):
    tau = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    units, norms = directions(tau)
    assert_near(norms, [math.sqrt(sum(value * value for value in row.flatten().tolist())) for row in tau])
    assert_near(units * norms.reshape(-1, *[1] * len(shape)), tau)


def test_small_numbers_have_a_direction_and_zero_has_none():
    units, norms = directions(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]))
    assert_near(units, [[0.6, 0.8], [0.0, 0.0]])
    assert norms[0] == pytest.approx(5e-30)
    assert norms[1] == 0


@pytest.mark.parametrize(("shape", "rank"), [((6, 4), 4), ((4, 9), 2), ((5, 5), 1)])
def test_the_leading_triplets_give_the_matrix_back_and_are_zero_beyond_its_rank(shape, rank):
    stack = random_stack(2, shape, rank=rank)
    left, values, right = leading_triplets(stack)
    assert values.dtype == torch.float64
    assert_near(left * values[:, None] @ right, stack)
    assert_near(left.mT @ left, torch.diag_embed((values > 0).double()))
    assert (values > 0).sum(1).tolist() == [rank, rank]
    assert not left[..., rank:].any()
    assert not right[:, rank:].any()


def test_fewer_triplets_are_the_first_of_all():
    matrix = random_stack(1, (6, 4))[0]
    for few, every in zip(leading_triplets(matrix, 2), leading_triplets(matrix), strict=True):
        assert_near(few, every[:2] if few.dim() == 1 or few.shape[0] == 2 else every[:, :2])


def test_triplets_count_beside_a_given_value():
    matrix = torch.diag(torch.tensor([1.0, 1e-3]))
    assert (leading_triplets(matrix)[1] > 0).tolist() == [True, True]
    assert (leading_triplets(matrix, largest=torch.tensor(1e-2 / NEGLIGIBLE))[1] > 0).tolist() == [True, False]
    assert (leading_triplets(matrix, largest=torch.tensor(10 / NEGLIGIBLE))[1] > 0).tolist() == [False, False]


@pytest.mark.parametrize("rank", [None, 2])
def test_the_polar_factor_is_the_sum_of_outer_products(rank):
    (matrix,) = random_stack(1, (5, 7), rank=rank)
    assert_near(polar_factor(matrix), polar(matrix.double().numpy()))


def test_the_polar_factor_of_zero_is_zero():
    assert not polar_factor(torch.zeros(3, 2)).any()
