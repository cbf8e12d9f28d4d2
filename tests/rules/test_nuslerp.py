import math

import pytest
from _helpers.golden import golden_output, golden_vectors, largest_error
from _helpers.small_models import merged_row, one_tensor, quick, random_rows, task_rows
from hypothesis import given
from hypothesis import strategies as st

from lwptv_lightning import MergeRecipe, merge
from lwptv_lightning.rules.nuslerp import NuSLERP


def test_equals_the_reference():
    result = merge(golden_vectors("main", tasks=[0, 1]), MergeRecipe(rule=NuSLERP(t=0.3)))
    assert largest_error(result, golden_output("nuslerp.mk_base")) < 1e-6


def length(row):
    return math.sqrt(sum(value**2 for value in row))


def loop_nuslerp(first, second, t):
    lengths = length(first) * length(second)
    cosine = sum(a * b for a, b in zip(first, second, strict=True)) / lengths if lengths else 0.0
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if not any(first) and not any(second):
        return [0.0] * len(first)
    if math.sin(angle) < 1e-6:
        one, other = 1 - t, t
    else:
        one, other = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return [one * a + other * b for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize("t", [0, 0.25, 0.5, 0.9, 1])
@pytest.mark.parametrize(("size", "seed"), [(1, 0), (1, 1), (2, 2), (9, 3), (40, 4)])
def test_goes_along_the_arc(t, size, seed):
    first, second = random_rows(2, size, seed)
    expected = loop_nuslerp(first, second, t)
    assert merged_row([first, second], NuSLERP(t=t), one_tensor) == pytest.approx(expected, abs=1e-5)


@quick
@given(task_rows().filter(lambda rows: len(rows) > 1), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_goes_along_the_arc_also_between_task_vectors_with_zeros(rows, t):
    expected = loop_nuslerp(*rows[:2], t)
    assert merged_row(rows[:2], NuSLERP(t=t), one_tensor) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.7])
def test_between_task_vectors_of_one_length_the_length_stays(t):
    rows = [[value / length(row) for value in row] for row in random_rows(2, 12)]
    assert length(merged_row(rows, NuSLERP(t=t), one_tensor)) == pytest.approx(1, rel=1e-6)


def test_exchanging_the_tasks_exchanges_the_ends():
    rows = random_rows(2, 8)
    assert merged_row(rows, NuSLERP(t=0.3), one_tensor) == pytest.approx(
        merged_row(rows[::-1], NuSLERP(t=0.7), one_tensor), abs=1e-6
    )


def test_parallel_and_opposite_task_vectors_are_interpolated_linearly():
    assert merged_row([[1.0, 2.0], [3.0, 6.0]], NuSLERP(t=0.25), one_tensor) == pytest.approx([1.5, 3.0])
    assert merged_row([[0.3, 0.7], [-0.9, -2.1]], NuSLERP(t=0.5), one_tensor) == pytest.approx([-0.3, -0.7])


def test_a_zero_task_vector_stands_at_a_right_angle():
    assert merged_row([[0.0, 0.0], [3.0, 4.0]], NuSLERP(t=0.5), one_tensor) == pytest.approx(
        [3 * math.sqrt(0.5), 4 * math.sqrt(0.5)]
    )


@pytest.mark.parametrize("tasks", [1, 3])
def test_refuses_other_than_two_tasks(tasks):
    with pytest.raises(ValueError, match=f"exactly 2 tasks, not {tasks}: task0"):
        merged_row(random_rows(tasks, 3), "nuslerp", one_tensor)


@pytest.mark.parametrize("t", [-0.1, 1.1])
def test_refuses_what_is_not_on_the_arc(t):
    with pytest.raises(ValueError, match=r"t must be a number in \[0, 1\]"):
        NuSLERP(t=t)
