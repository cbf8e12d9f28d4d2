from pathlib import Path

import pytest
import timm
import yaml
from _helpers.own_models import ODD_NAMES, write_own_models
from _helpers.own_suite import write_images
from safetensors.torch import save_file

from lwptv_lightning.cli import main

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def few_models(monkeypatch, tmp_path):
    known = ["test_vit", "test_resnet", "resnet18"]
    monkeypatch.setattr(timm, "list_models", lambda *_, **__: known)
    monkeypatch.chdir(tmp_path)


def resolved(sets, folder):
    return {name: (folder / path).resolve() for name, path in sets.items()}


@pytest.mark.parametrize(("layout", "names"), [("splits", None), ("sets", ODD_NAMES), ("plain", None)])
def test_a_folder_becomes_a_configuration_that_works_from_anywhere(layout, names, tmp_path, monkeypatch, capsys):
    own = write_own_models(tmp_path / "my models", layout=layout, names=names, images=2)
    main(["init", "my models", "--out", "suites.yaml"])
    said = capsys.readouterr().out
    assert said.startswith("Model: test_resnet (by its tensors)\nBase: base.safetensors (by its name)")
    written = yaml.safe_load(Path("suites.yaml").read_text())
    for group in ("id", "ood", "validation"):
        found = resolved(written["data"].get(group, {}), tmp_path)
        assert found == resolved(own.configuration["data"].get(group, {}), own.folder), group
    assert resolved(written["tasks"], tmp_path) == resolved(own.tasks, own.folder)
    assert written["heads"] == own.heads
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    main(["validate", "--config", "../suites.yaml", *QUIET])
    assert "ID" in capsys.readouterr().out


def test_classifiers_of_one_size_for_other_classes_are_heads(tmp_path, capsys):
    base = timm.create_model("test_resnet", num_classes=2).state_dict()
    (tmp_path / "own").mkdir()
    for number, name in enumerate(("base", "a", "b"), 1):
        state = {key: value.clone() for key, value in base.items()}
        state["conv1.weight" if "conv1.weight" in base else next(iter(base))] *= 1 + number / 100
        save_file(state, tmp_path / "own" / f"{name}.safetensors")
    for name in ("a", "b"):
        write_images(tmp_path / "images" / name, [f"{name}1", f"{name}2"])
    write_images(tmp_path / "images" / "ood" / "a_drawn", ["a2"])
    write_images(tmp_path / "images" / "ood" / "new", ["p", "q", "r"])
    main(["init", "own", "images"])
    assert "Left out: images/ood/new: no task has its 3 classes" in capsys.readouterr().out
    text = Path("suite.yaml").read_text()
    written = yaml.safe_load(text)
    assert written["exclude"] == ["fc.*"]
    assert written["heads"] == {"a": "own/a.safetensors", "b": "own/b.safetensors", "a_drawn": "a"}
    assert "    # new: images/ood/new # left out: no task has its 3 classes" in text
    main(["validate", "--config", "suite.yaml", *QUIET])


def test_what_is_there_is_not_replaced_unasked(tmp_path, capsys):
    Path("suite.yaml").write_text("mine")
    with pytest.raises(SystemExit, match="lwptv init: suite.yaml exists"):
        main(["init", "."])
    with pytest.raises(SystemExit, match="^2$"):
        main(["init", "nowhere"])
    assert Path("suite.yaml").read_text() == "mine"


WRONG = {
    "no folder": (["init", "nowhere"], "there is no folder 'nowhere'"),
    "nothing": (["init", "."], "too few checkpoints"),
    "another model": (["init", "own", "--model", "test_vit"], "--model: test_vit (as --model says) does not fit"),
    "a typo": (
        ["init", "own", "--model", "test_resnt"],
        "--model: timm has no model 'test_resnt'. Did you mean 'test_resnet'",
    ),
    "no base": (["init", "own", "--base", "bse"], "--base: there is no checkpoint 'bse'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_found_out_is_told(case, tmp_path, capsys):
    words, message = WRONG[case]
    if "own" in words:
        write_own_models(tmp_path / "own", kinds=("safetensors",) * 4, images=1)
    with pytest.raises(SystemExit, match=r"^2$"):
        main(words)
    said = capsys.readouterr().err
    assert said.startswith("lwptv init: error: ")
    assert message in said
    assert not Path("suite.yaml").exists()
