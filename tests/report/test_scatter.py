import csv
import io
from math import nan

import pytest

from lwptv_lightning.report import FAMILIES, Point
from lwptv_lightning.report.scatter import draw_scatter


def point(x, y, family="unpruned", label="", chosen=False, **others):
    return Point(f"{family} {x} {y}", {"id/avg": x, "ood/avg": y, **others}, family, label, chosen)


def texts(drawing):
    return [text.get_text() for axes in drawing.figure.axes for text in axes.texts]


def test_all_families_are_drawn_with_a_front_for_each_method(found):
    drawing = draw_scatter(found.points)
    legend = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert legend == ["base", "experts of one task", "not pruned", "pruned", "random masks", "chosen"]
    assert [axes.get_ylabel() for axes in drawing.figure.axes] == ["OOD near average (%)", "OOD far average (%)"]
    for axes in drawing.figure.axes:
        assert len(axes.lines) == 2
        assert len(axes.patches) == 1
    shown = texts(drawing)
    assert {"base", "task0", "0.4", "0.1"} <= {*shown}
    rows = list(csv.DictReader(io.StringIO(drawing.csv)))
    assert len(rows) == len(found.points)
    assert {row["family"] for row in rows} < {*FAMILIES}
    assert sum(int(row["chosen"]) for row in rows) == 2
    assert float(rows[0]["ood/near/avg"]) == found.points[0].figures["ood/near/avg"]


def test_the_alternative_text_has_the_numbers():
    points = [point(0.5, 0.75, "base"), point(0.6, 0.7), point(0.8, 0.6), point(0.55, 0.5), point(0.7, 0.7, "pruned")]
    points += [point(0.5 + x / 100, 0.6, "random") for x in range(3)]
    alt = draw_scatter([*points, point(0.9, 0.9, "learnt", "", True)]).alt
    assert "base ID 50.0, OOD 75.0" in alt
    assert "not pruned, 3 models, front from ID 60.0, OOD 70.0 to ID 80.0, OOD 60.0" in alt
    assert "random masks, 3 models, ID 50.0 to 52.0, OOD 60.0 to 60.0" in alt
    assert "chosen: learnt 0.9 0.9 ID 90.0, OOD 90.0" in alt


@pytest.mark.parametrize("points", [[], [Point("a", {"id/avg": 0.5})], [point(0.5, nan)]])
def test_without_both_averages_nothing_is_drawn(points):
    assert draw_scatter(points) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_one_point_is_a_picture(family):
    drawing = draw_scatter([point(0.5, 0.5, family, chosen=True)])
    assert len(drawing.figure.axes) == 1


def test_what_is_far_behind_does_not_squash_the_rest():
    points = [point(0.6 + x / 100, 0.8 - x / 100) for x in range(5)]
    drawing = draw_scatter([*points, point(0.01, 0.02)])
    assert drawing.figure.axes[0].get_xlim()[0] > 50
    assert "1 model lies far behind" in drawing.caption
    kept = draw_scatter([*points, point(0.01, 0.02, chosen=True)])
    assert kept.figure.axes[0].get_xlim()[0] < 1
    assert "far behind" not in kept.caption
