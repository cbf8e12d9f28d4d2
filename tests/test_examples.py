"""Every example runs, on little data."""

import importlib.util
from pathlib import Path

import pytest
import torch

from lwptv_lightning import open_checkpoint

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
    averages = load("adamerging").main(steps=25, size=40)
    assert averages["adamerging"] > averages["task_arithmetic"]


def test_finetune_is_the_same_to_the_bit_with_merging(tmp_path, capsys):
    script = load("finetune")
    plain = script.main(size=20, epochs=2, merging=False)
    merging = script.main(size=20, epochs=2, folder=str(tmp_path / "new"))
    assert merging.losses == plain.losses
    assert len(merging.losses) == 4
    state = plain.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in merging.state_dict().items())

    stored, base = (open_checkpoint(tmp_path / "new" / f"{name}.safetensors") for name in ("task_vector", "base"))
    assert all(torch.equal(stored.read(name), state[f"backbone.{name}"] - base.read(name)) for name in base.names)
    assert stored.metadata["lwptv_task"] == "greek_noise"
    heading, *epochs = (tmp_path / "new" / "results.csv").read_text().splitlines()
    assert len(epochs) == 2
    assert {"id/avg", "ood/avg", "id/greek_noise"} <= set(heading.split(","))
    assert "FineTuning, epoch 1" in capsys.readouterr().out


def test_multi_process_runs_on_one_process_too(capsys):
    figures = load("multi_process").main(size=10)
    assert {"id/avg", "ood/avg"} < figures.keys()
    assert len(capsys.readouterr().out.splitlines()) >= len(figures)


def test_no_example_is_left_out():
    tested = {"validate_merged", "add_to_training", "annotated_graph", "adamerging", "finetune", "multi_process"}
    assert {path.stem for path in FOLDER.glob("*.py")} == tested
