import json

import pytest

from lwptv_lightning.cli import main
from lwptv_lightning.report import ResultRow, ResultTable
from lwptv_lightning.zoo.demo import Demo


@pytest.mark.parametrize("option", ["--devices", "--size"])
def test_counts_below_one_are_refused_before_anything_runs(option, tmp_path):
    with pytest.raises(SystemExit, match=f"^lwptv demo: {option} must be at least 1, not 0"):
        main(["demo", option, "0", "--out", str(tmp_path / "demo")])
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("name", ["report.md", "results.csv", "merged.safetensors", "thesis.txt"])
def test_a_folder_with_foreign_files_is_refused_before_anything_runs(name, tmp_path, monkeypatch):
    monkeypatch.setattr("lwptv_lightning.zoo.demo.zoo_module", lambda: pytest.fail("it was run"))
    (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit, match=f"^lwptv demo: .*holds '{name}'.*--overwrite"):
        main(["demo", "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_overwrite_is_handed_on(tmp_path, monkeypatch, capsys):
    given = {}

    def run(folder, **options):
        given.update(options)
        return Demo(ResultTable([ResultRow("base", {"id/avg": 0.5})]), None, {"ties": 0.3}, {})

    monkeypatch.setattr("lwptv_lightning.zoo.run_demo", run)
    main(["demo", "--out", str(tmp_path), "--overwrite", "--json"])
    assert given["overwrite"] is True
    found = json.loads(capsys.readouterr().out)
    assert (found["out"], found["best"], found["rows"][0]["figures"]) == (str(tmp_path), {"ties": 0.3}, {"id/avg": 0.5})
