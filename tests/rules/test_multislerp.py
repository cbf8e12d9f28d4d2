import math

import pytest
from _helpers.golden import golden_output, golden_vectors, largest_error
from _helpers.small_models import merged_row, one_tensor, quick, random_rows, task_rows
from hypothesis import given

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules.multislerp import MultiSLERP


@pytest.mark.parametrize("weights", [None, (1, 1, 1, 1), (0.5, 0.5, 0.5, 0.5)])
def test_equals_the_reference(weights):
    result = merge(golden_vectors("main"), MergeRecipe(rule=MultiSLERP(weights=weights)))
    assert largest_error(result, golden_output("multislerp.mk_base")) < 1e-6


def length(row):
    return math.sqrt(sum(value**2 for value in row))


def dot(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


def weighted(rows, weights):
    return [dot(column, weights) for column in zip(*rows, strict=True)]


def loop_multislerp(rows, weights=None):
    """Go to the tangent space at the mean direction, average there, and come back along the sphere."""
    weights = [1.0] * len(rows) if weights is None else weights
    weights = [weight / sum(weights) for weight in weights]
    units = [[value / length(row) for value in row] if any(row) else row for row in rows]
    mean = weighted(units, weights)
    if length(mean) < 1e-6:
        return weighted(rows, weights)
    mean = [value / length(mean) for value in mean]
    tangents = [[u - dot(unit, mean) * m for u, m in zip(unit, mean, strict=True)] for unit in units]
    step = weighted(tangents, weights)
    angle = length(step)
    arc = math.sin(angle) / angle if angle else 1.0
    radius = dot([length(row) for row in rows], weights)
    return [radius * (math.cos(angle) * m + arc * s) for m, s in zip(mean, step, strict=True)]


@pytest.mark.parametrize("weights", [None, (1, 2, 3), (0.1, 0.7, 0.2), (0, 1, 1), (2, -0.5, 1)])
@pytest.mark.parametrize("size", [1, 4, 25])
def test_takes_one_step_in_the_tangent_space_of_the_mean(weights, size):
    rows = random_rows(3, size, seed=size)
    expected = loop_multislerp(rows, weights)
    assert merged_row(rows, MultiSLERP(weights=weights), one_tensor) == pytest.approx(expected, abs=1e-5)


@quick
@given(task_rows())
def test_zeros_and_cancelling_directions_are_met(rows):
    assert merged_row(rows, "multislerp", one_tensor) == pytest.approx(loop_multislerp(rows), abs=1e-4)


def test_length_is_the_mean_length():
    rows = random_rows(4, 10)
    merged = merged_row(rows, "multislerp", one_tensor)
    assert length(merged) == pytest.approx(sum(map(length, rows)) / 4, rel=1e-6)


def test_cancelling_directions_fall_back_to_the_weighted_average():
    rows = [[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    assert merged_row(rows, "multislerp", one_tensor) == [-0.25, 0.0]
    halves = MultiSLERP(weights=(1, 1))
    assert merged_row([[0.3, 0.7], [-0.9, -2.1]], halves, one_tensor) == pytest.approx([-0.3, -0.7])


def test_one_task_is_kept():
    assert merged_row([[1.0, -2.0]], "multislerp", one_tensor) == pytest.approx([1.0, -2.0])


def test_refuses_weights_without_a_sum():
    with pytest.raises(ValueError, match="weights must not sum to 0"):
        MultiSLERP(weights=(1, -1))


def test_refuses_weights_for_other_tasks():
    with pytest.raises(ValueError, match="weights holds 2 values"):
        merged_row(random_rows(3, 3), MultiSLERP(weights=(1, 1)), one_tensor)
