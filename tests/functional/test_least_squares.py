from functools import reduce

import numpy as np
import pytest
import torch
from _helpers.small_matrices import as_floats, assert_near, random_stack

from lwptv_lightning.functional import own_row_terms, row_terms

SIDES = [(2, 3, 9), (2, 5, 9), (3, 4, 4), (4, 9, 2)]
"""Tasks, rows and columns: with fewer rows than columns in all, about as many, and more."""


def explicit(targets, rows, rtol):
    """Each task's term by Gram matrices written out, and numpy's pseudo-inverse."""
    grams = [own.T @ own for own in rows]
    inverse = np.linalg.pinv(sum(grams), rcond=rtol, hermitian=True)
    return [target @ gram @ inverse for target, gram in zip(targets, grams, strict=True)]


@pytest.mark.parametrize("rtol", [1e-9, 0.05, 0.3])
@pytest.mark.parametrize(("tasks", "height", "width"), SIDES)
def test_terms_are_those_of_gram_matrices_and_a_pseudo_inverse(tasks, height, width, rtol):
    targets, rows = (random_stack(tasks, (height, width), seed).double() for seed in (1, 2))
    expected = explicit(as_floats(targets), as_floats(rows), rtol)
    found = torch.stack([*row_terms(targets, rows, rtol)])
    size = np.abs(expected).max()
    assert_near(found / size, np.stack(expected) / size, 1e-9)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize(("tasks", "height", "width"), SIDES)
def test_directions_that_no_row_has_are_not_made_up(tasks, height, width, rank):
    stack = random_stack(tasks, (height, width), rank=rank).double()
    expected = sum(explicit(as_floats(stack), as_floats(stack), 1e-9))
    # A cut-off of 0 is that of float64 itself.
    for rtol in (0.0, 1e-9):
        assert_near(sum(row_terms(stack, stack, rtol)), expected, 1e-6)


def test_the_sum_minimises_what_it_says():
    stack = random_stack(3, (4, 6), seed=5).double()
    merged = sum(own_row_terms(stack.clone()))
    disagreements = sum((merged - own) @ own.T @ own for own in stack)
    assert_near(disagreements / stack.abs().max() ** 3, torch.zeros(4, 6), 1e-9)


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 1.0])
def test_rows_of_the_largest_elements_alone(fraction):
    stack = random_stack(3, (5, 7), seed=3)
    count = max(round(fraction * 35), 1)
    rows = [own * (abs(own) >= np.sort(abs(own), axis=None)[-count]) for own in as_floats(stack)]
    assert [np.count_nonzero(own) for own in rows] == [count] * 3
    expected = sum(explicit(as_floats(stack), rows, 1e-9))
    assert_near(sum(own_row_terms(stack, 1e-9, kept=fraction)), expected, 1e-6)


def test_equal_magnitudes_stay_together():
    stack = random_stack(2, (4, 4)).sign()
    expected = reduce(torch.add, own_row_terms(stack.clone()))
    for fraction in (0.01, 0.5):
        assert torch.equal(reduce(torch.add, own_row_terms(stack.clone(), kept=fraction)), expected)


def test_largest_elements_of_what_is_found_by_a_sample():
    stack = random_stack(2, (3, 50_000)).double()
    least = stack.flatten(1).abs().sort(dim=1, descending=True).values[:, 74_999, None, None]
    (expected, _), (found, _) = row_terms(stack, stack * (stack.abs() >= least), 0), own_row_terms(stack, 0, kept=0.5)
    assert_near(found, expected, 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 3)])
def test_nothing_of_nothing(shape, dtype):
    terms = [*own_row_terms(torch.zeros(2, *shape, dtype=dtype))]
    assert [term.shape for term in terms] == [shape, shape]
    assert not any(term.any() for term in terms)


@pytest.mark.parametrize("size", [1e-150, 1e-30, 1e30, 1e150])
def test_follows_the_size_of_the_matrices(size):
    stack = random_stack(3, (4, 9)).double()
    for options in ({}, {"unit": True}, {"kept": 0.5}):
        expected = sum(own_row_terms(stack.clone(), **options))
        assert_near(sum(own_row_terms(stack * size, **options)) / size, expected, 1e-9)
