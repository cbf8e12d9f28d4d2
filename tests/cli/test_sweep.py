import csv

import pytest

from lwptv_lightning.cli import main
from lwptv_lightning.search.weights import Weights

CONFIGURATION = """
model: {class_path: lwptv_lightning.zoo.zoo_module}
data: {class_path: lwptv_lightning.zoo.zoo_suite, init_args: {size: 5}}
trainer:
  logger: false
  accelerator: cpu
  enable_progress_bar: false
  callbacks: [{class_path: lwptv_lightning.MergeReport, init_args: {folder: report}}]
recipes:
  plain: {rule: task_arithmetic, scale: 0.3}
  pruned: {rule: task_arithmetic, scale: 0.3, ratio: 0.5}
"""


def test_recipes_are_compared_in_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all.yaml").write_text(CONFIGURATION)
    main(["sweep", "--config", "all.yaml", "--out", "found.csv"])
    rows = list(csv.DictReader((tmp_path / "found.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == ["plain", "pruned"]
    assert sorted(", ".join(row["note"] for row in rows if row["note"]).split(", ")) == ["best", "one_standard_error"]
    assert "best" in max(rows, key=lambda row: float(row["id/avg"]))["note"]
    assert all(0 <= float(row["id/avg"]) <= 1 for row in rows)
    printed = capsys.readouterr().out
    assert "pruned" in printed
    assert f"{100 * float(rows[1]['ood/avg']):.1f}" in printed
    assert not (tmp_path / "report").exists()


SMALL = """
model: {class_path: _helpers.swept.plain_module}
data: {class_path: _helpers.swept.small_suite, init_args: {validation: true}}
trainer: {logger: false, accelerator: cpu, enable_progress_bar: false}
recipes:
  plain: task_arithmetic
  mine: fisher
"""


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """``swept(*options)``: the rows of a sweep, and how many models ran."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    ran = []
    of = Weights.of
    monkeypatch.setattr(Weights, "of", lambda self, candidates: ran.append(len(candidates)) or of(self, candidates))

    def run(*options):
        ran.clear()
        main(["sweep", "--config", "small.yaml", "--out", "found.csv", "--overwrite", *options])
        return list(csv.DictReader((tmp_path / "found.csv").read_text().splitlines())), sum(ran)

    return run


def test_a_sweep_goes_on_from_the_folder_beside_its_file(swept, tmp_path):
    first, ran = swept()
    assert ran == 2
    assert (tmp_path / "found.csv.store").is_dir()
    assert not any(row["seconds"] for row in first)
    assert swept() == (first, 0)
    assert swept("--store", "elsewhere") == (first, 2)
    again = "--recipes={plain: task_arithmetic, mine: fisher, new: {rule: ties, ratio: 0.5}}"
    assert swept(again)[1] == 1


def test_rules_that_need_data_and_running_statistics_look_at_the_validation_sets(swept):
    plain = swept()[0]
    found, ran = swept("--recalibrate")
    assert ran == 2
    assert [row["id/avg"] for row in found] != [row["id/avg"] for row in plain]
    with pytest.raises(SystemExit, match="candidate 'mine': rule 'fisher' needs its fisher"):
        main(["sweep", "--config", "small.yaml", "--data.init_args.validation=false"])
