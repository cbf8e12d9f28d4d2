import math

import pytest
import torch
from _helpers.golden import golden_vectors
from _helpers.small_models import merged_row, quick, random_rows, sign, task_rows
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules.pcb import PCB

SETTINGS = [(0.1, 1e-4), (0.05, 0.01), (0.5, 0.1), (1.0, 0.0), (0.3, 0.4)]


def loop_pcb(rows, density, clip):
    """The paper's steps on flat lists; fails on what divides by zero."""
    tasks, count = len(rows), len(rows[0])

    def between(values, low, high):
        ordered = sorted(values)
        return [min(max(value, ordered[low]), ordered[high]) for value in values]

    def stretched(values):
        least, most = min(values), max(values)
        return [(value - least) / (most - least) for value in values]

    totals = [sum(column) for column in zip(*rows, strict=True)]
    clamped, weights = [], []
    for row in rows:
        magnitudes = between([abs(value) for value in row], int(count * clip), int(count * (1 - clip) - 1))
        intra = [math.exp(tasks * value**2) for value in stretched(magnitudes)]
        scores = [a * math.tanh(value * total) for a, value, total in zip(intra, row, totals, strict=True)]
        weights.append(stretched(between(scores, min(int(count * (1 - density)), count - 1), count - 1)))
        clamped.append([sign(value) * magnitude for value, magnitude in zip(row, magnitudes, strict=True)])
    return [
        sum(w[i] * v[i] for w, v in zip(weights, clamped, strict=True)) / max(sum(w[i] for w in weights), 1e-12)
        for i in range(count)
    ]


@pytest.mark.parametrize(("density", "clip"), SETTINGS)
@pytest.mark.parametrize(("tasks", "size"), [(1, 30), (2, 57), (5, 120)])
def test_weighs_by_competition_over_the_whole_model(density, clip, tasks, size):
    rows = random_rows(tasks, size, seed=tasks)
    result = merged_row(rows, PCB(density=density, clip=clip), dtype=torch.float64)
    assert result == pytest.approx(loop_pcb(rows, density, clip), abs=1e-6)


@pytest.mark.parametrize("inputs", ["main", "frozen"])
def test_equals_the_loops_on_a_real_model(inputs):
    vectors = golden_vectors(inputs)
    rows = torch.cat([vectors.stack(name).reshape(len(vectors), -1) for name in vectors.names], dim=1)
    expected = torch.tensor(loop_pcb(rows.tolist(), 0.1, 1e-4))
    merged = merge(vectors, MergeRecipe(rule="pcb"))
    result = torch.cat([(merged[name] - vectors.base(name)).flatten() for name in vectors.names])
    assert (result - expected).abs().max() < 1e-6


@quick
@given(task_rows(), st.sampled_from(SETTINGS))
def test_each_weight_lies_between_those_of_the_tasks(rows, setting):
    density, clip = setting
    result = merged_row(rows, PCB(density=density, clip=clip))
    largest = max(abs(value) for row in rows for value in row)
    for value, column in zip(result, zip(*rows, strict=True), strict=True):
        assert math.isfinite(value)
        assert abs(value) <= largest + 1e-6
        assert sign(value) in {sign(other) for other in column} | {0}


@quick
@given(task_rows(), st.sampled_from(SETTINGS))
def test_the_order_of_tasks_does_not_matter(rows, setting):
    rule = PCB(density=setting[0], clip=setting[1])
    assert merged_row(rows, rule) == pytest.approx(merged_row(rows[::-1], rule), abs=1e-5)


def test_a_task_that_is_zero_weighs_nothing():
    rows = [[3.0, -1.0, 2.0, 0.5], [0.0] * 4]
    assert merged_row(rows, PCB(density=0.75, clip=0)) == pytest.approx([3.0, 0.0, 2.0, 0.0], abs=1e-6)


def test_equal_scores_weigh_one():
    assert merged_row([[2.0, -2.0, 2.0]], PCB()) == [2.0, -2.0, 2.0]


def test_task_vectors_that_cancel_leave_the_base():
    assert merged_row([[1.0, -2.0], [-1.0, 2.0]], PCB(density=1, clip=0)) == [0.0, 0.0]


def test_many_tasks_do_not_overflow():
    result = merged_row(random_rows(120, 8), PCB(density=0.5))
    assert all(map(math.isfinite, result))
    assert any(result)


@pytest.mark.parametrize("arguments", [{"density": 0}, {"density": 10}, {"clip": 0.5}, {"clip": -0.1}])
def test_refuses_values_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        PCB(**arguments)
