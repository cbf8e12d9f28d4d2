from math import nan

import pytest

from lwptv_lightning.report import ResultRow
from lwptv_lightning.report.bars import draw_bars

EXPERTS = {"a": 0.9, "b": 0.8}


def test_each_task_has_bars_and_its_expert():
    ties = ResultRow("ties", {"id/a": 0.5, "id/b": 0.25, "id/avg": 0.375, "ood/a": 0.1})
    rows = [ties, ResultRow("dare", {"id/a": 1.0})]
    drawing = draw_bars(rows, EXPERTS)
    (axes,) = drawing.figure.axes
    assert [round(patch.get_width()) for patch in axes.patches] == [50, 25, 100, 0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    (strokes,) = [each for each in axes.collections if len(each.get_paths()) == 2]
    assert [path.vertices[0, 0] for path in strokes.get_paths()] == [90.0, 80.0]
    assert "a: expert 90.0, ties 50.0, dare 100.0; b: expert 80.0, ties 25.0" in drawing.alt
    assert drawing.csv.splitlines()[1:] == [
        "a,id/a,ties,0.5,0.9", "a,id/a,dare,1.0,0.9", "b,id/b,ties,0.25,0.8", "b,id/b,dare,,0.8"
    ]  # fmt: skip


def test_sets_in_groups_are_their_tasks():
    drawing = draw_bars([ResultRow("ties", {"id/day/a": 0.5, "id/night/a": 0.25})], EXPERTS)
    (axes,) = drawing.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["id/day/a", "id/night/a"]


@pytest.mark.parametrize(
    ("figures", "plain", "experts"),
    [
        ({"ood/a": 0.5, "id/avg": 0.5}, (), EXPERTS),
        ({"id/a": nan}, (), EXPERTS),
        ({"id/a": 3.5}, ("id/a",), EXPERTS),
        ({"id/a": 0.5}, (), {"a": nan}),
        ({"id/c": 0.5}, (), EXPERTS),
    ],
)
def test_without_figures_of_a_task_nothing_is_drawn(figures, plain, experts):
    assert draw_bars([ResultRow("ties", figures, plain=plain)], experts) is None


def test_of_very_many_tasks_those_that_lose_most_are_shown():
    experts = {f"t{number}": 0.9 for number in range(100)}
    drawing = draw_bars([ResultRow("ties", {f"id/t{n}": n / 200 for n in range(100)})], experts)
    labels = [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()]
    assert labels == [f"t{number}" for number in range(60)]
    assert "60 of 100 tasks" in drawing.caption
    assert "t99,id/t99,ties,0.495,0.9" in drawing.csv
