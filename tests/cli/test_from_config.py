import json
from pathlib import Path

import pytest
import yaml
from _helpers.own_suite import SUITE, write_suite

from lwptv_lightning import MergeRecipe, Provenance, open_checkpoint
from lwptv_lightning.cli import main


@pytest.fixture(autouse=True)
def suite(tmp_path, monkeypatch):
    write_suite(tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    return "own/suite.yaml"


def recipe_of(path):
    return MergeRecipe.from_dict(Provenance.of(open_checkpoint(path)).recipe)


def test_base_tasks_model_and_recipe_are_those_of_the_file(suite, capsys):
    main(["check", "--config", suite])
    assert capsys.readouterr().out.count("same base") == 2
    main(["merge", "--config", suite, "--heads", "--out", "m.safetensors"])
    assert recipe_of("m.safetensors").ratio == 0.5
    assert Path("m.heads.safetensors").exists()
    main(["verify", "m.safetensors", "--config", suite])


def test_arguments_go_before_the_file(suite):
    main(
        [
            "merge",
            "--out",
            "m.safetensors",
            "own/models/base.safetensors",
            "x=own/models/cats.safetensors",
            "--ratio=0.25",
            "--config",
            suite,
        ]
    )
    made = Provenance.of(open_checkpoint("m.safetensors"))
    assert (list(made.tasks), made.recipe["ratio"]) == (["x"], 0.25)
    main(["merge", "x=own/models/cars.safetensors", "--config", suite, "--out", "one.safetensors"])
    assert list(Provenance.of(open_checkpoint("one.safetensors")).tasks) == ["x"]
    Path("r.json").write_text('{"rule": "ties"}')
    main(["merge", "--config", suite, "--recipe", "r.json", "--out", "ties.safetensors"])
    assert recipe_of("ties.safetensors").rule.name == "ties"


def test_options_go_over_the_file_as_in_every_command(suite, capsys):
    words = [
        "--recipe.ratio=0.25",
        "--recipe.rule",
        "ties",
        "--tasks.cars",
        "null",
        "--base",
        "own/models/cars.safetensors",
    ]
    main(["merge", "--config", suite, *words, "--out", "m.safetensors"])
    made = Provenance.of(open_checkpoint("m.safetensors"))
    assert (list(made.tasks), made.recipe["ratio"]) == (["cats"], 0.25)
    assert "ties" in str(made.recipe["rule"])
    capsys.readouterr()
    main(["check", "--config", suite, "--tasks.cats=null"])
    assert capsys.readouterr().out.count("same base") == 1
    for word, message in (
        ("--recipe.ratoi=1", "recipe.ratoi: unknown key. Did you mean 'recipe.ratio'"),
        ("--tasks.x=no.pt", "tasks.x: there is no checkpoint"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["merge", "--config", suite, word, "--out", "no.safetensors"])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_a_task_is_extracted_by_its_name(suite, capsys):
    main(["extract", "--config", suite, "cats", "--rank", "2", "--drop-rest", "--out", "adapter"])
    assert json.loads(Path("adapter/adapter_config.json").read_text())["r"] == 2
    for words, message in {
        ("cat",): "'cat' is neither a task nor a checkpoint. Did you mean 'cats'",
        (): "one of cats, cars",
    }.items():
        with pytest.raises(SystemExit, match=r"^2$"):
            main(["extract", "--config", suite, *words, "--rank", "2", "--out", "other"])
        assert message in capsys.readouterr().err


def test_the_older_form_and_models_of_ones_own_do_as_well(suite, capsys):
    values = yaml.safe_load(SUITE)
    arguments = {
        "model": "test_resnet",
        "base": "own/models/base.safetensors",
        "tasks": {"a": "own/models/cats.safetensors"},
    }
    old = {
        "model": {"class_path": "lwptv_lightning.validate.timm_module", "init_args": arguments},
        "data": values["data"],
    }
    Path("old.yaml").write_text(yaml.safe_dump(old))
    main(["check", "--config", "old.yaml"])
    values["model"] = {"class_path": "timm.create_model", "init_args": {"model_name": "test_resnet"}}
    Path("own/class.yaml").write_text(yaml.safe_dump(values))
    main(["check", "--config", "own/class.yaml"])
    assert capsys.readouterr().out.count("same base") == 3


WRONG = {
    "no file": (None, "--config: there is no file 'own/suit.yaml'. Did you mean 'suite.yaml'"),
    "no base": ("tasks: {a: models/cats.safetensors}", "base: it is required"),
    "no tasks": ("base: models/base.safetensors", "tasks: it is required"),
    "a list": ("base: models/base.safetensors\ntasks: [a]", "tasks: expected a mapping of names"),
    "a task": ("base: models/base.safetensors\ntasks: {a: models/cat.safetensors}", "tasks.a: there is no checkpoint"),
    "a recipe": (SUITE.replace("ratio", "ratoi"), "recipe.ratoi: unknown key. Did you mean 'recipe.ratio'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_by_its_key(case, capsys):
    text, message = WRONG[case]
    if text is not None:
        Path("own/suit.yaml").write_text(text)
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["merge", "--config", "own/suit.yaml", "--out", "m.safetensors"])
    assert f"lwptv merge: error: {message}" in capsys.readouterr().err


def test_without_a_file_all_is_asked_for_as_before(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["merge", "--out", "m.safetensors"])
    assert "the following arguments are required: base, NAME=CHECKPOINT" in capsys.readouterr().err
