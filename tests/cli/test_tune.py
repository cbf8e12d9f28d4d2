"""``lwptv tune`` from a folder of checkpoints and images to recipe, model and report."""

import csv
import json
from pathlib import Path

import pytest
import timm
import yaml
from _helpers.own_models import write_own_models
from _helpers.swept import validated

from lwptv_lightning import MergeRecipe, load_merged
from lwptv_lightning.cli import main
from lwptv_lightning.cli.configured import configured

SPACE = {"rules": ["task_arithmetic"], "scores": ["mean_abs"], "ratios": [0.5], "scales": [0.3, 0.6], "masks": 2}
FILES = {"recipe.json", "model", "report.html", "report.md", "results.csv", ".candidates"}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A user's folder, with batch normalisation in the models and other classes in each task."""
    return write_own_models(tmp_path_factory.mktemp("own"), images=3)


@pytest.fixture(scope="module")
def tuned(own):
    """What the command wrote, and said as JSON."""
    import contextlib
    import io

    own.write(tune=SPACE)
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(own.folder)
        main(["tune", "--config", "suite.yaml", "--json"])
    return own.folder / "tuned", json.loads(said.getvalue())


@pytest.fixture
def here(own, monkeypatch):
    monkeypatch.chdir(own.folder)
    own.write(tune=SPACE)
    return own.folder


def ended(*arguments):
    """The code and the words that a command ends with."""
    with pytest.raises(SystemExit) as stop:
        main(["tune", *arguments])
    return stop.value.code


def test_recipe_model_and_report_are_there(tuned):
    folder, said = tuned
    assert {path.name for path in folder.iterdir()} >= FILES
    assert {"README.md", "model.safetensors", "heads.safetensors"} <= {
        path.name for path in (folder / "model").iterdir()
    }
    recipe = MergeRecipe.from_json(folder / "recipe.json")
    assert recipe == MergeRecipe.from_dict(said["recipe"])
    assert said["choice"] == "one_standard_error"
    assert said["candidates"] == 4
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert [row["model"] for row in rows][:2] == ["base", "expert cats"]
    report = (folder / "report.md").read_text()
    assert said["recommendation"][0].partition(":")[0] in report
    assert "Batch normalisation was measured anew for each recipe" in report
    assert "few" in said["recommendation"][1]


def test_the_saved_model_gives_the_figures_of_its_row(tuned, own, make_trainer, monkeypatch):
    folder, said = tuned
    monkeypatch.chdir(own.folder)
    loaded = load_merged(folder / "model", timm.create_model(own.model, num_classes=2))
    with configured("validate", ["--config", "suite.yaml"]) as made:
        figures = validated(make_trainer(), loaded, made.datamodule.loaders)
    row = next(row for row in said["rows"] if row["name"] == said["chosen"]["one_standard_error"])
    assert figures == pytest.approx({name: row["figures"][name] for name in figures}, abs=1e-6)


def test_again_it_reads_what_it_found_and_writes_the_same(tuned, here, capsys, monkeypatch):
    folder, said = tuned
    before = {path: path.read_bytes() for path in (folder / "recipe.json", folder / "model" / "model.safetensors")}
    from lwptv_lightning.search.asked import Asked

    measured = []
    usual = Asked.measured

    def counted(self, missing, *arguments):
        measured.extend(missing)
        return usual(self, missing, *arguments)

    monkeypatch.setattr(Asked, "measured", counted)
    main(["tune", "--config", "suite.yaml"])
    assert measured == []
    assert {path: path.read_bytes() for path in before} == before
    printed = capsys.readouterr().out
    assert said["recommendation"][0] in printed
    assert "Recipe, merged model and report are in tuned" in printed


def test_what_is_taken_is_not_replaced_and_said_before_the_work(here, monkeypatch):
    from lwptv_lightning.search import sweep

    monkeypatch.setattr(__import__("sys").modules["lwptv_lightning.search.tune"], "sweep", lambda *_, **__: sweep)
    (here / "others").mkdir()
    (here / "others" / "report.md").write_text("mine")
    assert "others holds 'report.md', which no earlier report" in ended("--config", "suite.yaml", "--out", "others")
    (here / "model_of_others" / "model").mkdir(parents=True)
    (here / "model_of_others" / "model" / "model.safetensors").write_text("mine")
    assert "exists" in ended("--config", "suite.yaml", "--out", "model_of_others")
    (here / "file").write_text("x")
    assert "file" in ended("--config", "suite.yaml", "--out", "file")
    assert (here / "others" / "report.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--tune.rulez=[ties]", "tune.rulez: unknown key. Did you mean 'tune.rules'"),
        ("--tune.rules=[tsvm]", "tune.rules: unknown merging rule 'tsvm'. Did you mean 'tsv_m'"),
        ("--tune.scores=mean_ab", "tune.scores: unknown saliency score 'mean_ab'. Did you mean 'mean_abs'"),
        ("--tune.ratios=[50]", "tune.ratios: ratios must lie in [0, 1], not 50"),
        ("--tune.scales={tsv_m: [1]}", "tune.scales: unknown rule of the search among scales 'tsv_m'"),
        ("--tune.strategy=halvin", "tune.strategy: unknown strategy 'halvin'. Did you mean 'halving'"),
        ("--tune.choice=bets", "tune.choice: unknown choice 'bets'. Did you mean 'best'"),
        ("--tune.masks=-1", "tune.masks: masks must be at least 0"),
        ("--tune.recalibrate=maybe", "tune.recalibrate: recalibrate must be true or false"),
        ("--tune=5", "tune: expected a mapping"),
        ("--budget=10mins", "budget: budget must be a number of evaluations such as 200, or a time"),
        ("--tune.budget=0", "tune.budget: budget must be at least 1"),
    ],
)
def test_a_wrong_key_or_value_is_told_with_its_nearest(option, told, here, capsys):
    assert ended("--config", "suite.yaml", option) == 2
    said = capsys.readouterr().err
    assert f"lwptv tune: error: {told}" in said
    assert not (here / "tuned_wrong").exists()


def test_a_folder_of_test_images_does_not_choose(here):
    suite = yaml.safe_load((here / "suite.yaml").read_text())
    folder = suite["data"]["id"]["cats"]
    suite["data"]["validation"]["cats"] = f"./{folder}/../{Path(folder).name}"
    (here / "once.yaml").write_text(yaml.safe_dump(suite))
    said = ended("--config", "once.yaml", "--out", "once")
    assert "validation 'id/cats' and test 'id/cats' are the same samples" in said
    assert not (here / "once" / "recipe.json").exists()


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--data.init_args.size=6", "--data.init_args.validation=6", "--tune.rules=[ties]", "--tune.ratios=[0]"]
    example = Path(__file__).parents[2] / "examples" / "tune_zoo.yaml"
    main(["tune", "--config", str(example), *small, "--tune.scales=[0.5]", "--out", "zoo"])
    assert "Recipe, merged model and report are in zoo" in capsys.readouterr().out
    assert (tmp_path / "zoo" / "report.html").is_file()
