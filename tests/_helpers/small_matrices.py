"""Stacks of small matrices, and the linear algebra of merging rules spelled out in float64."""

import warnings

import numpy as np
import torch

from lwptv_lightning import MergeRecipe, TaskVectors, merge

SHAPES = [(6, 4), (4, 9), (5, 5), (12, 8)]


def random_stack(tasks, shape, seed=0, rank=None):
    """Random task vectors, ``(T, m, n)``, of full or given rank."""
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(tasks, *shape, generator=generator)
    rows, columns = shape
    return torch.randn(tasks, rows, rank, generator=generator) @ torch.randn(tasks, rank, columns, generator=generator)


def vectors_of(stacks):
    """Task vectors over a base of zeros, from name to ``(T, *shape)``."""
    count = len(next(iter(stacks.values())))
    base = {name: torch.zeros_like(stack[0]) for name, stack in stacks.items()}
    tasks = {f"task{index}": {name: stack[index] for name, stack in stacks.items()} for index in range(count)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="task .* equals the base")
        return TaskVectors.open(base, tasks)


def merged_stack(stack, rule, name="mlp.fc1.weight", dtype=torch.float32):
    """Merge one tensor with scale 1 and return the merged task vector, ``(*shape)``."""
    return merge(vectors_of({name: stack}), MergeRecipe(rule=rule, scale=1.0), dtype=dtype)[name]


def polar(matrix):
    """The nearest matrix with singular values 1, one pair of singular vectors after the other."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    total = np.zeros_like(matrix)
    for index, value in enumerate(values):
        if value > 1e-6 * values[0]:
            total += np.outer(left[:, index], right[index])
    return total


def as_floats(stack):
    return [matrix.double().numpy() for matrix in stack]


def assert_near(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=tolerance, rtol=tolerance)
