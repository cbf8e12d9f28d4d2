"""From a folder of own checkpoints and images to the report by `lwptv init` and `lwptv tune`: no Python between."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from _helpers.markup import Page
from _helpers.own_models import CLASSES, ODD_NAMES, OOD, write_own_models
from _helpers.processes import environment
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config

from lwptv_lightning.cli import main
from lwptv_lightning.recipe import MergeRecipe

SMALL = ["--budget=4", "--tune.rules=[task_arithmetic]", "--tune.scores=[mean_abs]", "--tune.masks=1"]
SMALL += ["--tune.ratios=[0.5]", "--tune.scales=[0.2, 0.4]"]
WHERE = {
    "in its folder": ({"layout": "splits", "model": "test_convnext"}, "own", "own"),
    "from elsewhere, with odd names": ({"layout": "sets", "model": "test_vit", "names": ODD_NAMES}, "my ünits", "."),
    "with batch norm": ({"layout": "splits", "model": "test_resnet", "base": "timm"}, "own", "."),
    "without validation sets": ({"layout": "plain", "model": "test_convnext", "base": "pth", "images": 4}, "own", "."),
}
"""What is written, the folder's name, and where the commands run."""


def rows_of(out):
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def chosen_row(out):
    (row,) = [row for row in rows_of(out) if "chosen by one_standard_error" in row["note"]]
    return row


def anew(own, out, task, place):
    """Return the saved model's accuracy on a folder of images, by timm and torch alone."""
    own_name = dict(zip(CLASSES, own.tasks, strict=True))[task]
    model = timm.create_model(own.model, num_classes=len(CLASSES[task])).eval()
    heads = load_file(out / "model" / "heads.safetensors")
    head = {
        name.removeprefix(f"{own_name}/"): value for name, value in heads.items() if name.startswith(f"{own_name}/")
    }
    assert head
    model.load_state_dict(load_file(out / "model" / "model.safetensors") | head)
    transform = create_transform(**resolve_model_data_config(model))
    right, images = 0, sorted((own.folder / place).glob("*/*.png"))
    with torch.no_grad():
        for path in images:
            image = transform(Image.open(path).convert("RGB"))
            right += CLASSES[task][int(model(image[None]).argmax())] == path.parent.name
    return right / len(images)


@pytest.mark.parametrize("case", WHERE)
def test_three_commands_lead_to_a_report(case, tmp_path, monkeypatch, capsys):
    written, name, place = WHERE[case]
    own = write_own_models(tmp_path / name, **{"images": 2} | written)
    monkeypatch.chdir(tmp_path / place)
    main(["init", str(own.folder), "--out", "suite.yaml"])
    found = yaml.safe_load(Path("suite.yaml").read_text(encoding="utf-8"))
    assert found["model"] == own.model
    assert set(found["tasks"]) == set(own.tasks)
    assert set(found["data"]["id"]) == set(own.id)
    assert set(found["data"]["ood"]) == set(own.ood)
    assert set(found["data"].get("validation") or {}) == set(own.validation)
    capsys.readouterr()
    main(["tune", "--config", "suite.yaml", "--out", "tuned", *SMALL])
    said = capsys.readouterr()

    out = Path("tuned").absolute()
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert page.faults == []
    report = (out / "report.md").read_text(encoding="utf-8")
    sentence = " ".join(said.out.split())
    assert MergeRecipe.from_json(out / "recipe.json").describe() in sentence
    row = chosen_row(out)
    for task, own_name in zip(CLASSES, own.tasks, strict=True):
        if own.validation:
            assert float(row[f"id/{own_name}"]) == pytest.approx(anew(own, out, task, own.id[own_name]), abs=1e-6)
        assert own_name in page.text
        assert own_name in report
    for each, (task, _) in OOD.items():
        assert float(row[f"ood/{each}"]) == pytest.approx(anew(own, out, task, own.ood[each]), abs=1e-6)
    assert {"report.html", "report.md", "results.csv", "recipe.json", "model"} <= {path.name for path in out.iterdir()}
    for figure in (out / "figures").glob("*.png"):
        assert figure.with_suffix(".svg").exists()
        assert figure.with_suffix(".csv").exists()


def test_the_commands_run_in_a_shell_and_are_quiet_in_a_pipe(tmp_path):
    write_own_models(tmp_path / "own", "test_convnext", layout="splits", images=2)

    def run(*words):
        command = [sys.executable, "-m", "lwptv_lightning", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment())

    started = run("init", "own")
    assert started.returncode == 0, started.stderr
    assert "suite.yaml" in started.stdout
    done = run("tune", "--config", "suite.yaml", *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "tuned" / "report.html").exists()
