"""Experts with classifiers of 2, 5 and 10 classes, from the shell alone: checked, merged, compared, saved."""

import csv
import itertools
import json

import pytest
import torch
import yaml
from _helpers.experts import HEADS, NETWORKS, write_images
from safetensors.torch import load_file

from lwptv_lightning import MergeRecipe, load_merged
from lwptv_lightning.cli import main
from lwptv_lightning.evaluation import image_folders

pytestmark = pytest.mark.filterwarnings("ignore:.weights_only. was not set")
RECIPE = {"rule": "task_arithmetic", "scale": 0.3, "ratio": 0.25}
IMAGES = {"image_size": 32, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "batch_size": 30, "num_workers": 0}


@pytest.fixture(params=NETWORKS)
def experts(request, make_experts, tmp_path):
    """Checkpoints by plain Lightning, and folders of images ``id/<task>`` and ``ood/<task>_far``."""
    made = make_experts(request.param)
    for name, data in made.sets.items():
        write_images(tmp_path / name, data)
    return made


def configuration(experts, folder):
    """What a user writes to merge and validate them."""
    name, arguments = NETWORKS[experts.kind]
    sets = {kind: {path.name: str(path) for path in sorted((folder / kind).iterdir())} for kind in ("id", "ood")}
    model = {
        "model": name,
        "model_arguments": arguments | {"num_classes": 3},
        "base": str(experts.base),
        "tasks": {task: str(path) for task, path in experts.tasks.items()},
        "recipe": RECIPE,
        "heads": HEADS,
    }
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    report = {"class_path": "lwptv_lightning.MergeReport", "init_args": {"folder": str(folder / "report")}}
    return {
        "model": {"class_path": "lwptv_lightning.validate.timm_module", "init_args": model},
        "data": {"class_path": "lwptv_lightning.validate.image_folders", "init_args": {**sets, **IMAGES}},
        "trainer": quiet | {"devices": 1, "callbacks": [report]},
        "save": str(folder / "merged.safetensors"),
    }


def accuracy(network, loader):
    with torch.no_grad():
        hits = torch.cat([network(images).argmax(1) == labels for images, labels in loader])
    return hits.float().mean().item()


def test_one_file_says_all_from_checkpoints_to_a_model_that_timm_loads(experts, make_trainer, tmp_path, capsys):
    given = configuration(experts, tmp_path)
    model = given["model"]["init_args"]
    options = [f"--model-option={name}={json.dumps(value)}" for name, value in model["model_arguments"].items()]
    tasks = [f"{task}={path}" for task, path in model["tasks"].items()]
    main(["check", model["base"], *tasks, "--model", model["model"], *options])
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(given))
    main(["validate", "--config", str(tmp_path / "all.yaml")])
    assert "The merged model is in" in capsys.readouterr().out

    (row,) = csv.DictReader((tmp_path / "report" / "results.csv").read_text().splitlines())
    assert len({row[name] for name in experts.sets}) > 3  # the figures tell something
    suite = image_folders(**given["data"]["init_args"])
    merged = load_file(tmp_path / "merged.safetensors")
    heads = load_file(tmp_path / "merged.heads.safetensors")
    assert {name.partition("/")[0] for name in heads} == {*experts.tasks, *HEADS}
    for name, loader in suite.loaders.items():
        own = name.partition("/")[2]
        head = {key.removeprefix(f"{own}/"): value for key, value in heads.items() if key.startswith(f"{own}/")}
        classes = next(len(value) for value in head.values())
        plain = experts.network(classes)
        plain.load_state_dict(merged | head)
        assert accuracy(plain, loader) == pytest.approx(float(row[name]), abs=1e-6)
    again = load_merged(tmp_path / "merged.safetensors", experts.network())
    results = make_trainer().validate(again, suite, verbose=False)
    assert {name: figure for result in results for name, figure in result.items()} == pytest.approx(
        {name: float(row[name]) for name in row if "/" in name}, abs=1e-6
    )


def test_rules_that_need_data_and_comparisons_run_by_the_same_file(experts, tmp_path, capsys):
    given = configuration(experts, tmp_path)
    given["recipes"] = {"plain": RECIPE | {"ratio": 0.0}, "pruned": RECIPE, "ties": "ties"}
    given["trainer"] |= {"max_steps": 2}
    given["trainer"]["callbacks"][0]["init_args"]["overwrite"] = True  # of another recipe each time
    given["samples"] = 12
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump(given))

    def run(*words):
        main([words[0], "--config", str(file), *words[1:]])
        return capsys.readouterr().out

    run("sweep", "--out", str(tmp_path / "sweep.csv"))
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == list(given["recipes"])
    found = {row["model"]: row for row in rows}
    run("learn", "--out", str(tmp_path / "learnt.json"), "--learn.lr", "0.05")
    recipe = MergeRecipe.from_json(tmp_path / "learnt.json")
    assert any(abs(value - 0.3) > 0.01 for row in recipe.rule.coefficients.values() for value in row)
    merged = {"pruned": [], "adamerging": ["--model.recipe", str(tmp_path / "learnt.json")]}
    for rule in ("fisher", "regmean"):
        data = str(tmp_path / f"{rule}.safetensors")
        assert data in run("collect", "--model.recipe", rule, "--out", data)
        merged[rule] = ["--model.recipe", rule, "--data_statistics", data]
    made = {}
    for name, options in merged.items():
        path = tmp_path / f"{name}.safetensors"
        run("validate", *options, "--save", str(tmp_path / "out" / path.name))
        (row,) = csv.DictReader((tmp_path / "report" / "results.csv").read_text().splitlines())
        assert experts.sets.keys() < row.keys()
        made[name] = load_file(tmp_path / "out" / path.name)
        if name in found:
            swept = {key: float(found[name][key]) for key in experts.sets}
            assert {key: float(row[key]) for key in experts.sets} == pytest.approx(swept, abs=1e-6)
    weights = [state["conv1.weight" if experts.kind == "resnet" else "stem.0.weight"] for state in made.values()]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(weights, 2))
