import dataclasses

import pytest

from lwptv_lightning.report import Findings
from lwptv_lightning.report import figures as module
from lwptv_lightning.report.figures import FIGURE_NAMES, draw_figures


@pytest.fixture
def asked(monkeypatch):
    """What would be drawn, without drawing it."""
    calls = {}
    for name in ("scatter", "saliency", "curves", "bars", "similarity", "changes"):
        monkeypatch.setattr(module, f"draw_{name}", lambda *given, name=name: calls.update({name: given}))
    return calls


def test_every_figure_that_has_data_is_drawn(found, written):
    files = {path.stem for path in (written / "figures").iterdir()}
    assert files == {*FIGURE_NAMES}


def test_without_data_none_is_asked_for(found, asked):
    assert draw_figures(Findings("Mine", found.table)) == []
    assert asked == {}


def test_chosen_rows_are_set_against_the_experts(found, asked):
    draw_figures(found)
    assert [row.name for row in asked["bars"][0]] == ["rule0 x 0.4", "rule0 x 0.4, mean_abs 0.5"]
    draw_figures(dataclasses.replace(found, compared=["base"]))
    assert [row.name for row in asked["bars"][0]] == ["base"]
    plain = [dataclasses.replace(point, chosen=False) for point in found.points]
    draw_figures(dataclasses.replace(found, points=plain))
    assert [row.name for row in asked["bars"][0]] == [row.name for row in found.table.rows[-4:]]
