"""Sums of the kernel against exact ones."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from _helpers.kernels import COMPILED, PLAIN, SIZES, Rows, everything, ragged_vectors
from _helpers.states import open_vectors

from lwptv_lightning import collect_statistics, layers_from_names
from lwptv_lightning.engine import statistics_fused


def exact(rows, base):
    """Return the sums in float64, by numpy, of integers without any rounding."""
    rows = np.asarray(rows, np.float64)
    total, mean = rows.sum(0), rows.mean(0)
    deviations = rows - mean
    agreeing = ((rows * total) > 0).sum(1)
    opposing = ((rows * total) < 0).sum(1)
    sums = [np.abs(rows).sum(1), agreeing, opposing, (deviations**2).sum(1), (deviations * mean).sum(1)]
    return rows @ rows.T, np.stack(sums), (np.asarray(base, np.float64) ** 2).sum()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_sums_of_integers_are_exact(tasks, size):
    # A mean of two or four integers is exact as well.
    rows = torch.randint(-8, 9, (tasks, size), generator=torch.Generator().manual_seed(size)).float()
    base = torch.arange(size).float() - 5
    stack = Rows(list(rows), base)
    for found, expected in zip(statistics_fused(stack, everything(stack)), exact(rows, base), strict=True):
        assert np.array_equal(found.numpy(), expected)


def test_a_pruned_row_counts_as_zeros():
    rows = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 0.0]])
    stack = Rows([rows[0], None])
    for found, expected in zip(statistics_fused(stack, everything(stack)), exact(rows, torch.zeros(3)), strict=True):
        assert np.array_equal(found.numpy(), expected)


def test_equal_task_vectors_deviate_by_nothing():
    row = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    _, sums, _ = statistics_fused(Rows([row, row, row]), slice(0, 3000))
    assert sums[3:].abs().max() == 0
    assert sums[1].tolist() == [3000.0] * 3


@pytest.mark.parametrize("tasks", [3, 8])
def test_sums_of_other_numbers_are_near(tasks):
    rows = torch.randn(tasks, 50_000, generator=torch.Generator().manual_seed(0)) + 0.3
    base = torch.randn(50_000, generator=torch.Generator().manual_seed(1))
    stack = Rows(list(rows), base)
    (gram, sums, squared), (all_gram, all_sums, all_squared) = (
        statistics_fused(stack, everything(stack)),
        exact(rows, base),
    )
    np.testing.assert_allclose(gram, all_gram, rtol=1e-6, atol=1e-6 * all_gram.diagonal().max())
    np.testing.assert_allclose(sums[[0, 3]], all_sums[[0, 3]], rtol=1e-6)
    assert np.array_equal(sums[1:3], all_sums[1:3])
    np.testing.assert_allclose(sums[4], all_sums[4], atol=1e-6 * all_sums[3].max())
    np.testing.assert_allclose(squared, all_squared, rtol=1e-12)


COUNTS = {"agreeing", "opposing"}


def figures(statistics):
    return {
        each.name: getattr(statistics, each.name) for each in fields(statistics) if each.name not in ("tasks", "layers")
    }


@pytest.mark.parametrize("kinds", [(torch.float32, (torch.float32,)), (torch.bfloat16, (torch.bfloat16,))], ids=str)
def test_statistics_of_a_model_are_those_of_torch_and_the_same_for_any_number_of_threads(kinds, use_threads):
    vectors = ragged_vectors(3, *kinds, sizes=(1, 33, 1025, 5000))
    layers = layers_from_names(vectors.names, "tensor")
    found = {}
    for threads in (1, 2, 3):
        use_threads(threads)
        for execution in (PLAIN, COMPILED):
            found[threads, execution.compiled] = figures(collect_statistics(vectors, layers, execution=execution))
    for name, plain in found[1, False].items():
        compiled = found[1, True][name]
        for threads in (2, 3):
            assert torch.equal(found[threads, True][name], compiled), name
            assert torch.equal(found[threads, False][name], plain), name
        if name in COUNTS:
            assert torch.equal(compiled, plain)
        else:
            torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=1e-6 * float(plain.abs().max()))


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_squares_that_float32_cannot_hold_are_left_to_torch(scale):
    rows = scale * torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    vectors = open_vectors({"w": torch.zeros(100)}, {"a": {"w": rows[0]}, "b": {"w": rows[1]}})
    layers = layers_from_names(vectors.names, "tensor")
    compiled, plain = (figures(collect_statistics(vectors, layers, execution=each)) for each in (COMPILED, PLAIN))
    assert all(torch.equal(compiled[name], values) for name, values in plain.items())
    assert compiled["gram"].min() != 0
