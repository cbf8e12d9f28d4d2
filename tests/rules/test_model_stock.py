import itertools
import math

import pytest
from _helpers.golden import golden_output, golden_vectors, largest_error
from _helpers.small_models import merged_row, one_tensor, quick, random_rows, task_rows
from hypothesis import given

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules.model_stock import ModelStock


def test_equals_the_reference():
    result = merge(golden_vectors("main"), MergeRecipe(rule="model_stock"))
    assert largest_error(result, golden_output("model_stock.mk")) < 1e-6


def dot(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


def cosine(one, other):
    lengths = math.sqrt(dot(one, one)) * math.sqrt(dot(other, other))
    return dot(one, other) / lengths if lengths else 0.0


def loop_model_stock(rows, clamp=False):
    tasks = len(rows)
    ratio = 1.0
    if tasks > 1:
        pairs = [cosine(one, other) for one, other in itertools.combinations(rows, 2)]
        mean = sum(pairs) / len(pairs)
        divisor = 1 + (tasks - 1) * mean
        ratio = tasks * mean / divisor if divisor > 1e-6 else 0.0
    if clamp:
        ratio = min(max(ratio, 0), 1)
    return [ratio * sum(column) / tasks for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize(("tasks", "size"), [(1, 5), (2, 7), (3, 1), (3, 20), (5, 9)])
@pytest.mark.parametrize("seed", range(4))
def test_shrinks_the_average_by_the_mean_cosine(clamp, tasks, size, seed):
    rows = random_rows(tasks, size, seed)
    expected = loop_model_stock(rows, clamp)
    assert merged_row(rows, ModelStock(clamp=clamp), one_tensor) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@quick
@given(task_rows())
def test_clamped_it_never_goes_beyond_the_average(rows):
    expected = loop_model_stock(rows, clamp=True)
    result = merged_row(rows, ModelStock(clamp=True), one_tensor)
    assert result == pytest.approx(expected, abs=1e-5)
    for value, column in zip(result, zip(*rows, strict=True), strict=True):
        assert abs(value) <= abs(sum(column) / len(rows)) + 1e-6


def test_equal_task_vectors_stay_however_small():
    assert merged_row([[3e-7, -4e-7]] * 3, "model_stock", one_tensor) == pytest.approx([3e-7, -4e-7])
    assert merged_row([[3e-25, -4e-25]] * 3, "model_stock", one_tensor) == pytest.approx([3e-25, -4e-25])


def test_orthogonal_task_vectors_give_the_base():
    assert merged_row([[1.0, 0.0], [0.0, 2.0]], "model_stock", one_tensor) == [0.0, 0.0]


def test_one_task_is_kept():
    assert merged_row([[1.0, -2.0]], "model_stock", one_tensor) == [1.0, -2.0]


def test_opposite_task_vectors_give_the_base():
    assert merged_row([[1.0, 2.0], [-2.0, -4.0]], "model_stock", one_tensor) == [0.0, 0.0]


def test_task_vectors_that_point_apart_go_the_other_way_unless_clamped():
    apart = [[1.0, 0.5], [-1.0, 0.5]]  # cosine -0.6, so r = -3
    assert merged_row(apart, "model_stock", one_tensor) == pytest.approx([0.0, -1.5], rel=1e-5)
    assert merged_row(apart, ModelStock(clamp=True), one_tensor) == [0.0, 0.0]


def test_refuses_what_is_no_switch():
    with pytest.raises(TypeError, match="clamp must be true or false"):
        ModelStock(clamp=1)
