import json

from lwptv_lightning.cli import main


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
