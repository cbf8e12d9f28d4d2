import csv

from lwptv_lightning.cli import main

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
