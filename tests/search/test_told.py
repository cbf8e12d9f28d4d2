import csv

import pytest
from _helpers.swept import small_loader, small_module, small_samples

from lwptv_lightning import tune
from lwptv_lightning.report import write_report
from lwptv_lightning.search import findings_of
from lwptv_lightning.search.space import REFERENCE

SPACE = {"rules": ["ties"], "scores": ["mean_abs", "l2"], "ratios": [0.5], "scales": [0.5, 1], "gates": False}


@pytest.fixture
def told(make_trainer):
    module = small_module()
    test = {name: small_loader(name, 30, 9) for name in ("id/a", "id/b", "ood/far")}
    found = tune(make_trainer(), module, small_samples(), test, space=SPACE, masks=3)
    return found, findings_of(found, module)


def test_a_report_is_written_with_what_was_found(told, tmp_path):
    found, findings = told
    write_report(findings, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.index(found.recommendation[0][:40]) < text.index("## Results")
    assert "running" not in text or "Batch normalisation was measured anew" in text
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == [row.name for row in found.table.rows]
    assert float(rows[0]["id/avg"]) == pytest.approx(found.test.figures("base")["id/avg"])


def test_all_that_was_measured_is_in_it(told):
    found, findings = told
    assert findings.conclusion == found.recommendation
    families = [point.family for point in findings.points]
    assert families.count("random") == len(found.masks)
    assert families.count("expert") == 2
    assert {point.name for point in findings.points if point.chosen} == set(found.chosen.values())
    named = {point.name for point in findings.points}
    assert {*found.curves["unpruned"], *found.curves["pruned"], REFERENCE, found.unpruned} <= named
    assert len(named) == len(findings.points)
    assert [each.other for each in findings.differences] == list(found.differences)
    assert findings.experts["a"] == found.test.figures("expert a")["id/a"]
    assert {each.name: each.images for each in findings.sets} == dict.fromkeys(found.test.outcomes, 30)
    assert (findings.plan is None) is not found.recipe.prunes_layers
    assert findings.recipe == found.recipe
    assert [set(models) for models in findings.changes.values()] == [set(findings.compared)] * len(findings.changes)
    assert all(len(points) == 2 for points in findings.curves.values())
    assert found.searched in findings.notes
