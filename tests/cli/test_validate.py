import json

import pytest

from lwptv_lightning.cli import main

CONFIGURATION = """
model: {class_path: lwptv_lightning.zoo.zoo_module, init_args: {recipe: ties}}
data: {class_path: lwptv_lightning.zoo.zoo_suite, init_args: {size: 5}}
trainer:
  logger: false
  accelerator: cpu
  enable_progress_bar: false
  callbacks:
    - class_path: lwptv_lightning.PruneAndMerge
      init_args: {recipe: {rule: ties, scale: 0.7, ratio: 0.25}, stages: [validate], max_memory: 1GB}
    - {class_path: lwptv_lightning.MergeReport, init_args: {folder: report}}
"""


def test_validate_runs_a_configuration(tmp_path, monkeypatch, capsys):
    from pathlib import Path

    configuration = (Path(__file__).parents[2] / "examples" / "demo.yaml").read_text()
    (tmp_path / "demo.yaml").write_text(configuration.replace("size: 150", "size: 20").replace("auto", "cpu"))
    monkeypatch.chdir(tmp_path)
    main(["validate", "--config", "demo.yaml", "--trainer.enable_progress_bar=false"])
    recipe = json.loads((tmp_path / "lwptv_validate" / "recipe.json").read_text())
    assert (recipe["rule"]["name"], recipe["scale"], recipe["ratio"]) == ("task_arithmetic", 0.3, 0.5)
    assert "task_arithmetic x 0.3, mean_abs 0.5" in (tmp_path / "lwptv_validate" / "report.md").read_text()
    assert (tmp_path / "lwptv_validate" / "saliency.png").exists()


def test_callbacks_and_modules_can_be_configured(tmp_path, monkeypatch):
    (tmp_path / "configuration.yaml").write_text(CONFIGURATION)
    monkeypatch.chdir(tmp_path)
    main(["validate", "--config", "configuration.yaml"])
    assert "| ties x 0.7, mean_abs 0.25 |" in (tmp_path / "report" / "report.md").read_text()


def test_what_is_wrong_is_told_in_one_line_as_text(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["validate", "--a\x1b[2J=1"])
    assert capsys.readouterr() == ("", "lwptv validate: error: unrecognized arguments: --a\\x1b[2J=1\n")
