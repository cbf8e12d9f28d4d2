"""Every example runs, on little data."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"


def load(name):
    specification = importlib.util.spec_from_file_location(f"examples_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_validate_merged(tmp_path, capsys):
    load("validate_merged").main(size=10, folder=str(tmp_path / "report"))
    assert len((tmp_path / "report" / "results.csv").read_text().splitlines()) == 4
    assert "ties x 1, mean_abs 0.5" in capsys.readouterr().out


def test_add_to_training():
    assert 0 <= load("add_to_training").main(size=20)["accuracy"] <= 1


def test_annotated_graph(capsys):
    load("annotated_graph").main()
    assert "pruned for: no task" in capsys.readouterr().out


def test_adamerging_beats_task_arithmetic_on_the_tasks():
    averages = load("adamerging").main(steps=60, size=75)
    assert averages["adamerging"] > averages["task_arithmetic"]


def test_multi_process_runs_on_one_process_too(capsys):
    figures = load("multi_process").main(size=10)
    assert {"id/avg", "ood/avg"} < figures.keys()
    assert len(capsys.readouterr().out.splitlines()) >= len(figures)


def test_no_example_is_left_out():
    tested = {"validate_merged", "add_to_training", "annotated_graph", "adamerging", "multi_process"}
    assert {path.stem for path in FOLDER.glob("*.py")} == tested
