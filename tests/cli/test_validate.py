import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from torchmetrics.classification import MulticlassF1Score

from lwptv_lightning import read_heads
from lwptv_lightning.cli import main
from lwptv_lightning.sharing import read_results
from lwptv_lightning.validate import image_folders

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
    configuration = (Path(__file__).parents[2] / "examples" / "demo.yaml").read_text()
    (tmp_path / "demo.yaml").write_text(configuration.replace("size: 150", "size: 20").replace("auto", "cpu"))
    monkeypatch.chdir(tmp_path)
    main(["validate", "--config", "demo.yaml", "--trainer.enable_progress_bar=false", "--save=merged"])
    recipe = json.loads((tmp_path / "lwptv_validate" / "recipe.json").read_text())
    assert (recipe["rule"]["name"], recipe["scale"], recipe["ratio"]) == ("task_arithmetic", 0.3, 0.5)
    assert "task_arithmetic x 0.3, mean_abs 0.5" in (tmp_path / "lwptv_validate" / "report.md").read_text()
    assert (tmp_path / "lwptv_validate" / "saliency.png").exists()
    assert {"README.md", "model.safetensors", "heads.safetensors"} <= {
        each.name for each in (tmp_path / "merged").iterdir()
    }
    (row,) = read_results(tmp_path / "lwptv_validate" / "results.csv").values()
    written = ModelCard((tmp_path / "merged" / "README.md").read_text()).data.eval_results
    assert [each.metric_value for each in written] == pytest.approx(list(row.values()), abs=1e-5)


def test_where_nothing_can_be_saved_nothing_is_validated(tmp_path, monkeypatch, capsys):
    (tmp_path / "configuration.yaml").write_text(CONFIGURATION)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years")
    for path, why in {"thesis": "thesis exists; give another path", "merged.pt": "must end in .safetensors"}.items():
        with pytest.raises(SystemExit) as stop:
            main(["validate", "--config", "configuration.yaml", f"--save={path}"])
        assert why in str(stop.value.code)
    assert not (tmp_path / "report").exists()


def test_callbacks_and_modules_can_be_configured(tmp_path, monkeypatch):
    (tmp_path / "configuration.yaml").write_text(CONFIGURATION)
    monkeypatch.chdir(tmp_path)
    main(["validate", "--config", "configuration.yaml"])
    assert "| ties x 0.7, mean_abs 0.25 |" in (tmp_path / "report" / "report.md").read_text()
    (tmp_path / "configuration.yaml").write_text(CONFIGURATION.replace("0.7", "0.6"))
    with pytest.raises(SystemExit, match=r"report of another run.* or MergeReport\(overwrite=True\)\.$"):
        main(["validate", "--config", "configuration.yaml", "--overwrite"])


def test_what_is_wrong_is_told_in_one_line_as_text(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["validate", "--a\x1b[2J=1"])
    assert capsys.readouterr() == ("", "lwptv validate: error: unrecognized arguments: --a\\x1b[2J=1\n")


def images(folder, classes):
    generator = np.random.default_rng(classes)
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True)
        for number in range(2):
            pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")


@pytest.fixture
def own_classifiers(tmp_path, monkeypatch, fine_tuned):
    """A configuration of one expert whose classifier is its own, and of two OOD sets."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base, expert = (torchvision.models.squeezenet1_1(num_classes=classes) for classes in (4, 3))
    own = {name: value for name, value in expert.state_dict().items() if name.startswith("classifier.")}
    torch.save(base.state_dict(), "base.pt")
    torch.save(fine_tuned(base.state_dict(), 1, 0.001) | own, "a.pt")
    images(tmp_path / "images", 3)
    model = {"class_path": "torchvision.models.squeezenet1_1", "init_args": {"num_classes": 4}}
    arguments = {"model": model, "base": "base.pt", "tasks": {"a": "a.pt"}, "recipe": "simple_average"}
    sets = {"id": {"a": "images"}, "ood": {"far": "images", "other": "images"}}
    quiet = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    report = {"class_path": "lwptv_lightning.MergeReport", "init_args": {"folder": "report"}}
    return {
        "model": {"class_path": "lwptv_lightning.validate.files_module", "init_args": arguments},
        "data": {
            "class_path": "lwptv_lightning.validate.image_folders",
            "init_args": {**sets, "image_size": 48, "num_workers": 0},
        },
        "trainer": {**quiet, "callbacks": [report]},
    }


HEADS = {
    "names of others": {"far": "a", "other": "far"},
    "checkpoints": {"far": "a.pt", "other": "a"},
    "modules": {
        "far": {
            "class_path": "torch.nn.Conv2d",
            "init_args": {"in_channels": 512, "out_channels": 3, "kernel_size": 1},
        },
        "other": "far",
    },
}


@pytest.mark.parametrize("case", HEADS)
def test_heads_are_said_in_a_configuration(case, own_classifiers):
    own_classifiers["model"]["init_args"]["heads"] = HEADS[case]
    Path("all.yaml").write_text(yaml.safe_dump(own_classifiers))
    main(["validate", "--config", "all.yaml", "--save", "merged.safetensors"])
    report = Path("report/results.csv").read_text().splitlines()[0]
    assert all(name in report for name in ("id/a", "ood/far", "ood/other"))
    assert list(read_heads("merged.heads.safetensors")) == ["a", "far", "other"] or case == "modules"
    assert Path("merged.safetensors").exists()


def test_sets_in_groups_are_said_in_a_configuration(own_classifiers, capsys):
    own_classifiers["model"]["init_args"]["heads"] = {"b": "a", "near/b": "a.pt"}
    own_classifiers["data"]["init_args"]["ood"] = {"near/b": "images", "far/b": "images", "far/c": "images"}
    own_classifiers["trainer"]["callbacks"] = None
    Path("all.yaml").write_text(yaml.safe_dump(own_classifiers))
    with pytest.raises(SystemExit, match="unknown head for loader 'ood/far/c': 'c'"):
        main(["validate", "--config", "all.yaml"])
    main(["validate", "--config", "all.yaml", "--model.init_args.heads.c=b", "--save", "merged"])
    shown = capsys.readouterr().out
    assert {"near/", "far/", "near", "far"} <= set(re.split(r"[\s│┃]+", shown))
    assert list(read_heads("merged/heads.safetensors")) == ["a", "near/b", "b", "c"]
    results = {each.dataset_name for each in ModelCard(Path("merged/README.md").read_text()).data.eval_results}
    assert results == {
        "id a",
        "ood near/b",
        "ood far/b",
        "ood far/c",
        "ID avg",
        "OOD near avg",
        "OOD far avg",
        "OOD avg",
    }


WRONG = {
    "unknown": ({"far": "b", "other": "a"}, "lwptv validate: the head of 'far' is 'b', which is neither another set"),
    "circle": ({"far": "other", "other": "far"}, "lwptv validate: heads name each other in a circle: 'far' -> 'other'"),
    "none": ({"far": "a"}, "lwptv validate: unknown head for loader 'ood/other': 'other'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_heads_are_told_as_they_are(case, own_classifiers):
    own_classifiers["model"]["init_args"]["heads"], message = WRONG[case]
    Path("all.yaml").write_text(yaml.safe_dump(own_classifiers))
    with pytest.raises(SystemExit, match=f"^{message}"):
        main(["validate", "--config", "all.yaml"])
    own_classifiers["model"]["init_args"]["heads"] = {"far": 3}
    Path("all.yaml").write_text(yaml.safe_dump(own_classifiers))
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["validate", "--config", "all.yaml"])


def test_figures_are_printed_without_a_report_too(own_classifiers, capsys):
    own_classifiers["model"]["init_args"]["heads"] = {"far": "a", "other": "a"}
    own_classifiers["trainer"]["callbacks"] = None
    Path("all.yaml").write_text(yaml.safe_dump(own_classifiers))
    main(["validate", "--config", "all.yaml"])
    shown = capsys.readouterr().out
    assert all(name in shown.split() for name in ("id", "ood", "far", "other", "ID", "OOD"))
    rows = [line for line in shown.splitlines() if line.count(".") >= 5]
    assert [line.strip("│ ").partition(" │")[0].strip() for line in rows] == ["base", "expert a", "simple_average x 1"]
    main(["validate", "--config", "all.yaml", "--only_merged"])
    assert [line for line in capsys.readouterr().out.splitlines() if line.count(".") >= 5] == rows[-1:]


def test_where_a_model_cannot_be_saved_is_told_first(own_classifiers):
    own_classifiers["model"]["init_args"]["heads"] = {"far": "a", "other": "a"}
    Path("all.yaml").write_text(yaml.safe_dump(own_classifiers))
    Path("file").touch()
    Path("there.heads.safetensors").touch()
    for path in ("file/merged.safetensors", "there.safetensors"):
        with pytest.raises(SystemExit, match=f"lwptv validate: .*{path.partition('.')[0]}"):
            main(["validate", "--config", "all.yaml", "--save", path])
    assert not Path("report").exists()
    main(["validate", "--config", "all.yaml", "--save", "there.safetensors", "--overwrite"])
    assert list(read_heads("there.heads.safetensors")) == ["a", "far", "other"]
    main(["validate", "--config", "all.yaml", "--save", "folder", "--trainer.callbacks=null"])
    assert list(read_heads("folder/heads.safetensors")) == ["a", "far", "other"]


@pytest.mark.parametrize("metric", [None, {"num_classes": 3, "average": "macro"}])
def test_base_and_experts_are_beside_the_merged_model_once(metric, own_classifiers, capsys):
    arguments = own_classifiers["model"]["init_args"]
    arguments["heads"] = {"far": "a", "other": "a"}
    if metric is not None:
        arguments["metric"] = {"class_path": "torchmetrics.classification.MulticlassF1Score", "init_args": metric}
    Path("all.yaml").write_text(yaml.safe_dump(own_classifiers))
    main(["validate", "--config", "all.yaml", "--json", "--out", "figures.json", "--save", "merged.safetensors"])
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [(row["name"], row["kind"]) for row in found["rows"]] == [
        ("base", "base"),
        ("expert a", "expert"),
        ("simple_average x 1", "merged"),
    ]
    assert captured.err.count("simple_average x 1") == 0
    assert json.loads(Path("figures.json").read_text()).items() <= found.items()
    ((name, figures),) = read_results("report/results.csv").items()  # the report is of the merged model alone
    assert (name, figures) == ("simple_average x 1", found["rows"][-1]["figures"])
    expert = torchvision.models.squeezenet1_1(num_classes=3).eval()
    expert.load_state_dict(torch.load("a.pt"))
    suite = image_folders({"a": "images"}, image_size=48, num_workers=0)
    right = MulticlassF1Score(**(metric or {"num_classes": 3, "average": "micro"}))
    for inputs, labels in suite.loaders["id/a"]:
        right.update(expert(inputs), labels)
    assert found["rows"][1]["figures"]["id/a"] == pytest.approx(right.compute().item(), abs=1e-6)
    with pytest.raises(SystemExit, match="figures.json exists"):
        main(["validate", "--config", "all.yaml", "--out", "figures.json"])
    assert "simple_average" not in capsys.readouterr().out


def test_a_table_of_another_kind_is_refused(own_classifiers, capsys):
    Path("all.yaml").write_text(yaml.safe_dump(own_classifiers))
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["validate", "--config", "all.yaml", "--out", "figures.xlsx"])
    assert "must end in .csv or .json" in capsys.readouterr().err
