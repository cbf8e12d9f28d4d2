import math

import pytest
import torch
from _helpers.golden import golden_vectors
from _helpers.small_models import merged_row, one_tensor, random_rows

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules.karcher import Karcher


def length(row):
    return math.sqrt(sum(value**2 for value in row))


def dot(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


def mean_of(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def over_length(row):
    return [value / length(row) for value in row]


def tangent_mean(units, mean, tol=1e-5):
    tangents = []
    for unit in units:
        cosine = max(-1.0, min(1.0, dot(unit, mean)))
        angle = math.acos(cosine)
        stretch = angle / math.sin(angle) if angle >= tol else 0.0
        tangents.append([stretch * (u - cosine * m) for u, m in zip(unit, mean, strict=True)])
    return mean_of(tangents)


def loop_karcher(rows, max_iter=10, tol=1e-5):
    radius = sum(map(length, rows)) / len(rows)
    units = [over_length(row) for row in rows if length(row) > tol]
    if not units:
        return [0.0] * len(rows[0])
    mean = mean_of(units)
    mean = units[0] if length(mean) < tol else over_length(mean)
    for _ in range(max_iter):
        step = tangent_mean(units, mean, tol)
        size = length(step)
        if size < tol:
            break
        moved = [math.cos(size) * m + math.sin(size) * s / size for m, s in zip(mean, step, strict=True)]
        mean = over_length(moved)
    return [radius * value for value in mean]


@pytest.mark.parametrize(("max_iter", "tol"), [(0, 1e-5), (1, 1e-5), (10, 1e-5), (50, 1e-9), (10, 0.1)])
@pytest.mark.parametrize(("tasks", "size"), [(1, 4), (2, 6), (3, 3), (3, 30), (6, 12)])
def test_steps_towards_the_mean_of_the_directions(max_iter, tol, tasks, size):
    rows = random_rows(tasks, size, seed=size)
    expected = loop_karcher(rows, max_iter, tol)
    result = merged_row(rows, Karcher(max_iter=max_iter, tol=tol), one_tensor)
    assert result == pytest.approx(expected, abs=1e-5)


def test_merges_nearly_opposite_parallel_and_zero_task_vectors():
    vectors = golden_vectors("pair")
    result = merge(vectors, MergeRecipe(rule="karcher"))
    for name in ("anti", "near", "zero", "gen"):
        rows = vectors.stack(name).double().reshape(2, -1).tolist()
        assert result[name].flatten().tolist() == pytest.approx(loop_karcher(rows), abs=5e-5), name


def test_float64_gives_the_same_mean():
    vectors, recipe = golden_vectors("main"), MergeRecipe(rule="karcher")
    exact = merge(vectors, recipe, dtype=torch.float64)
    for name, tensor in merge(vectors, recipe).items():
        torch.testing.assert_close(tensor, exact[name], atol=1e-6, rtol=0)


def test_the_mean_is_where_the_tangents_cancel():
    rows = random_rows(5, 9)
    result = merged_row(rows, Karcher(max_iter=200, tol=1e-9), one_tensor)
    assert length(tangent_mean([over_length(row) for row in rows], over_length(result))) < 1e-6


def test_two_directions_meet_half_way():
    merged = merged_row([[2.0, 0.0], [0.0, 4.0]], "karcher", one_tensor)
    assert merged == pytest.approx([3 * math.sqrt(0.5)] * 2)


def test_a_zero_task_vector_shortens_the_mean():
    assert merged_row([[0.0, 0.0], [3.0, 4.0]], "karcher", one_tensor) == pytest.approx([1.5, 2.0])


def test_a_task_vector_within_the_tolerance_has_no_direction():
    assert merged_row([[3.0, 4.0], [0.0, 0.1]], Karcher(tol=0.2), one_tensor) == pytest.approx([1.53, 2.04])
    assert merged_row([[0.1, 0.0], [0.0, 0.1]], Karcher(tol=0.2), one_tensor) == [0.0, 0.0]


def test_of_opposite_directions_the_first_is_kept():
    assert merged_row([[3.0, 4.0], [-6.0, -8.0]], "karcher", one_tensor) == pytest.approx([4.5, 6.0])


def test_one_task_is_kept_however_small():
    assert merged_row([[1e-7, -2e-7]], "karcher", one_tensor) == pytest.approx([1e-7, -2e-7])


@pytest.mark.parametrize("arguments", [{"max_iter": -1}, {"tol": -1.0}])
def test_refuses_negative_settings(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Karcher(**arguments)
