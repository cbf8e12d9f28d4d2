import csv
import dataclasses
import io

import pytest
import torch
from _helpers.made_findings import plan_of

from lwptv_lightning.report import Similarity, heat_maps
from lwptv_lightning.report.heat_maps import draw_saliency, draw_similarity


def named(count, word):
    return [f"{word}{number}" for number in range(count)]


def test_each_pruned_cell_has_a_cross():
    plan = plan_of(named(3, "task"), named(70, "layer"))
    drawing = draw_saliency(plan)
    _, *strips = drawing.figure.axes
    assert len(strips) == 2
    crosses = {
        (int(row), int(column) + 35 * strip)
        for strip, axes in enumerate(strips)
        for column, row in axes.collections[0].get_offsets()
    }
    assert crosses == {tuple(cell) for cell in (~plan.mask.kept).nonzero().tolist()}
    assert "105 of 210 cells pruned (50 %)" in drawing.alt
    top = int(plan.scores.values[0].argmax())
    assert f"task0: 35 of 70 layers pruned, most salient layer{top}, least" in drawing.alt
    rows = list(csv.DictReader(io.StringIO(drawing.csv)))
    assert [row["task"] for row in rows[:3]] == named(3, "task")
    assert {(row["layer"], row["task"]) for row in rows if row["kept"] == "0"} == {
        (f"layer{column}", f"task{row}") for row, column in crosses
    }
    assert float(rows[0]["score"]) == float(plan.scores.values[0, 0])


def test_a_plan_without_scores_is_drawn():
    plan = plan_of(["a"], named(3, "layer"), ratio=1.0)
    drawing = draw_saliency(dataclasses.replace(plan, scores=None))
    assert "3 of 3 cells pruned" in drawing.alt
    assert "most salient" not in drawing.alt


def test_a_map_of_very_many_cells_leaves_pruned_ones_blank(monkeypatch):
    monkeypatch.setattr(heat_maps, "_MOST_CROSSED", 100)
    plan = plan_of(named(4, "task"), named(60, "layer"))
    _, *strips = draw_saliency(plan).figure.axes
    assert not any(axes.collections for axes in strips)
    blank = torch.cat([torch.as_tensor(axes.images[0].get_array().mask) for axes in strips], dim=1)
    assert torch.equal(blank, ~plan.mask.kept)


def test_similarities_are_drawn_with_their_numbers():
    drawing = draw_similarity(Similarity(["a", "b", "c"], [[1, 0.25, -0.5], [0.25, 1, 0.75], [-0.5, 0.75, 1]]))
    shown = [text.get_text() for text in drawing.figure.axes[0].texts]
    assert sorted(shown) == sorted(["0.25", "-0.50", "0.25", "0.75", "-0.50", "0.75"])
    assert "from -0.50 to 0.75, mean 0.17" in drawing.alt
    assert "b and c 0.75" in drawing.alt
    assert "b,c,0.75\n" in drawing.csv


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, float("nan")])
def test_similarities_of_any_size_are_drawn(value):
    assert draw_similarity(Similarity(["a", "b"], [[1.0, value], [value, 1.0]])) is not None
    assert draw_similarity(Similarity(["a"], [[1.0]])) is None
