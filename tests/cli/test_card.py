import pytest
import torch
from huggingface_hub import ModelCard

from lwptv_lightning import MergeRecipe, TaskVectors, save_merged
from lwptv_lightning.cli import main
from lwptv_lightning.report import ResultRow, ResultTable

RECIPE = MergeRecipe("ties", ratio=0.5)


@pytest.fixture
def merged(tmp_path):
    base = {"v": torch.zeros(20), "w": torch.ones(20)}
    return save_merged(
        TaskVectors.open(base, {"a": {"v": torch.ones(20), "w": torch.ones(20) * 2}}),
        RECIPE,
        tmp_path / "out" / "merged.safetensors",
    )


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["card", *map(str, arguments)])
    return str(stop.value.code)


def test_a_model_that_is_not_there_is_told_before_a_card_that_is(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    assert "there is no checkpoint at 'nowhere'" in refused(capsys, "nowhere")


def test_a_card_is_written_beside_the_model(merged, capsys):
    main(["card", str(merged)])
    path = merged.parent / "README.md"
    assert capsys.readouterr().out == f"Wrote {path}\n"
    assert "| task a | 1 | 2 |" in path.read_text()
    assert "README.md exists; give another path or --overwrite." in refused(capsys, merged.parent)
    main(["card", str(merged.parent), "--overwrite", "--title", "My model"])
    assert "\n# My model\n" in path.read_text()


def test_figures_come_from_a_report_with_all_else_as_controls(merged, tmp_path, capsys):
    rows = [
        ResultRow("base", {"id/a": 0.25}),
        ResultRow(MergeRecipe("ties").describe(), {"id/a": 0.5}),
        ResultRow(RECIPE.describe(), {"id/a": 0.75}),
    ]
    results = tmp_path / "results.csv"
    results.write_text(ResultTable(rows).csv())
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    save_merged(
        TaskVectors.open({"v": torch.zeros(2)}, {"a": {"v": torch.ones(2)}}),
        "ties",
        tmp_path / "base" / "b.safetensors",
    )
    card = tmp_path / "card.md"
    main(["card", str(merged), "--results", str(results), "--base", str(tmp_path / "base"), "--out", str(card)])
    text = card.read_text()
    assert "| this model | 0.7500 |\n| base | 0.2500 |\n| unpruned | 0.5000 |" in text
    assert "Not measured beside it: each fine-tuned model on its own set." in text
    data = ModelCard(text).data
    assert [each.metric_value for each in data.eval_results] == [0.75]
    assert data.license == "mit"
    main(["card", str(merged), "--results", str(results), "--row", "base", "--out", str(card), "--overwrite"])
    assert "| this model | 0.2500 |" in card.read_text()
    assert "no row is called 'bas'. Did you mean 'base'" in refused(
        capsys, merged, "--results", results, "--row", "bas", "--out", tmp_path / "x"
    )
    assert "--row needs --results" in refused(capsys, merged, "--row", "bas", "--out", tmp_path / "x")


def test_what_is_no_merged_model_has_none(tmp_path, capsys):
    torch.save({"w": torch.ones(2)}, tmp_path / "plain.pt")
    assert "a model card is of a merged model" in refused(capsys, tmp_path / "plain.pt")
    assert "there is no checkpoint at" in refused(capsys, tmp_path / "none")
    assert not (tmp_path / "README.md").exists()
