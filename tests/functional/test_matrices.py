import math

import numpy as np
import pytest
import torch
from _helpers.small_matrices import assert_near, polar, random_stack

from lwptv_lightning.functional import NEGLIGIBLE, decompose, directions, inverse_root, leading_triplets, polar_factor


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


DECADES = [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6]


def with_spectrum(shape, spectrum, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(side, len(spectrum), generator=generator, dtype=torch.float64) for side in shape]
    left, right = (torch.linalg.qr(side)[0] for side in sides)
    return (scale * (left * torch.tensor(spectrum, dtype=torch.float64)) @ right.mT).float()


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("shape", [(40, 150), (150, 40), (40, 40)])
@pytest.mark.parametrize("spectrum", ["falling", "two levels", "close to the cut"])
def test_the_error_of_a_direction_grows_as_its_weight_falls_and_no_faster_than_stated(shape, spectrum, scale):
    spectra = {
        "falling": np.logspace(0, -7, 40),
        "two levels": np.repeat([1.0, 1e-4], 20) * np.linspace(1.1, 0.9, 40),
        "close to the cut": np.concatenate([np.ones(20), np.linspace(4e-6, 2e-6, 20)]),
    }
    matrix = with_spectrum(shape, spectra[spectrum], scale)
    left, values, right = (each.numpy() for each in leading_triplets(matrix))
    expected_left, expected, expected_right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    weights = expected / expected[0]
    assert ((values > 0) == (weights > NEGLIGIBLE)).all()
    for above in DECADES:
        real = weights > above * 0.99
        if not real.any() or ((~real).any() and weights[real][-1] < 1.1 * weights[~real][0]):
            continue  # where there is no gap, no two methods agree on a subspace
        stated = 1e-13 + 1e-15 / weights[real][-1] ** 2  # ten times as much as the docstring says
        assert np.abs(values[real] / expected[real] - 1).max() < stated
        polar_part, expected_part = left[:, real] @ right[real], expected_left[:, real] @ expected_right[real]
        assert np.linalg.norm(polar_part - expected_part, 2) < stated
        assert np.linalg.norm(right[real] @ right[real].T - np.eye(real.sum()), 2) < stated
        assert np.linalg.norm(left[:, real].T @ left[:, real] - np.eye(real.sum()), 2) < stated


def test_what_rounding_makes_of_missing_directions_is_none():
    for shape in [(30, 90), (90, 30), (60, 60)]:
        assert int((decompose(with_spectrum(shape, [1.0, 1e-2, 1e-4])).values > 0).sum()) == 3


def test_float64_weights_keep_what_squares_would_lose():
    exact = (
        torch.diag(torch.tensor([1.0, 3e-6, 2e-6], dtype=torch.float64))
        @ torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    )
    values = leading_triplets(exact).values
    np.testing.assert_allclose(values, [1.0, 3e-6, 2e-6], rtol=1e-9)
    # What is computed in float64 from weights of float32 may be treated as these are.
    found = leading_triplets(exact, source=torch.float32).values
    np.testing.assert_allclose(found, values, rtol=1e-3)
    assert not torch.equal(found, values)
    assert_near(polar_factor(exact, torch.float32), polar_factor(exact), 1e-3)
    assert_near(inverse_root(exact[:2], torch.float32) / 3e5, inverse_root(exact[:2]) / 3e5, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 4), (2, 3), (2, 3, 4)])
def test_nothing_is_decomposed_into_nothing(shape, dtype, monkeypatch):
    for name in ("svd", "eigh"):
        monkeypatch.setattr(torch.linalg, name, None)
    left, values, right = decompose(torch.zeros(shape, dtype=dtype))
    smaller = min(shape[-2:])
    assert (left.shape, values.shape, right.shape) == (
        (*shape[:-1], smaller),
        (*shape[:-2], smaller),
        (*shape[:-2], smaller, shape[-1]),
    )
    assert not any(each.any() for each in (left, values, right))
    assert left.dtype == values.dtype == right.dtype == torch.float64


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_float64_of_any_scale_has_the_triplets_of_scale_one(scale):
    (matrix,) = random_stack(1, (4, 6)).double()
    found, expected = (leading_triplets(each, source=torch.float32) for each in (scale * matrix, matrix))
    np.testing.assert_allclose(found.values / scale, expected.values, rtol=1e-12)
    assert_near(found.left * found.values / scale @ found.right, matrix, 1e-12)


def test_zeros_beside_others_are_zeros():
    stack = torch.stack([torch.zeros(3, 4), *random_stack(1, (3, 4)), torch.zeros(3, 4)])
    for each, alone in zip(decompose(stack), decompose(stack[1]), strict=True):
        assert not each[0].any()
        assert not each[2].any()
        assert_near(each[1], alone, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_triplets_are_a_function_of_the_values_wherever_they_lie(dtype):
    values = random_stack(3, (24, 40))[1].to(dtype)
    expected = decompose(values)
    within = torch.zeros(50, 60, 3, dtype=dtype)
    within[3:27, 7:47, 1] = values
    for same in (values.mT.contiguous().mT, within[3:27, 7:47, 1], torch.stack([values, values])[1]):
        assert all(map(torch.equal, decompose(same), expected))
