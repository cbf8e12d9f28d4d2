"""Every example runs, on little data."""

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from lwptv_lightning import open_checkpoint
from lwptv_lightning.cli import main
from lwptv_lightning.inspection import check

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


def test_layer_gates_compares_fronts(capsys):
    means = load("layer_gates").main(steps=2, images=6, size=10)
    assert list(means)[-1] == "gates x 1.0"
    assert all(0 < mean < 1 for mean in means.values())
    assert capsys.readouterr().out.count("ood/near") == 7


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


def test_make_experts_writes_what_a_user_has(tmp_path, capsys):
    make = load("make_experts")
    make.main("own", images=16, epochs=1)
    assert capsys.readouterr().out.splitlines()[-1].endswith("lwptv init own")
    base = timm.create_model("local-dir:own/models/base", pretrained=True)
    assert timm.data.resolve_model_data_config(base)["input_size"] == (3, 32, 32)
    experts = {task: f"own/models/{task}.ckpt" for task in make.CLASSES}
    assert all(found.passed for found in check("own/models/base", experts))
    for task, classes in make.CLASSES.items():
        splits = [set(ImageFolder(f"own/images/{split}/{task}").classes) for split in ("train", "val", "test")]
        assert len(splits[0]) == classes
        for name, other in make.OOD.items():
            if other == task:
                splits.append(set(ImageFolder(f"own/images/ood/{name}").classes))
        assert all(names == splits[0] for names in splits)
    with pytest.raises(SystemExit, match="own is not empty"):
        make.main("own", images=16)
    with pytest.raises(SystemExit, match="at least 16"):
        make.main("other", images=9)
    assert not Path("other").exists()


def test_no_example_is_left_out():
    tested = {
        "validate_merged",
        "add_to_training",
        "annotated_graph",
        "adamerging",
        "layer_gates",
        "finetune",
        "make_experts",
        "multi_process",
    }
    assert {path.stem for path in FOLDER.glob("*.py")} == tested


def test_own_models_need_three_commands(tmp_path, capsys):
    base = timm.create_model("test_resnet", num_classes=3)
    torch.save(base.state_dict(), "base.pth")
    for task, classes in {"cats": 2, "cars": 4}.items():
        expert = timm.create_model("test_resnet", num_classes=classes)
        expert.load_state_dict({k: v for k, v in base.state_dict().items() if not k.startswith("fc.")}, strict=False)
        with torch.no_grad():
            next(expert.parameters()).mul_(1 + classes / 100)
        state = expert.state_dict()
        if task == "cars":
            torch.save({"state_dict": {f"model.{name}": value for name, value in state.items()}}, "cars.ckpt")
        else:
            torch.save(state, "cats.pth")
        for name in ("cats", "cats_drawn") if task == "cats" else ("cars",):
            for label in range(classes):
                (tmp_path / "images" / name / str(label)).mkdir(parents=True)
                Image.new("RGB", (32, 32), (50 * label, 0, 0)).save(tmp_path / "images" / name / str(label) / "0.png")
    main(["check", "base.pth", "cats=cats.pth", "cars=cars.ckpt", "--model", "test_resnet"])
    assert capsys.readouterr().out.count("same base") == 2
    text = (FOLDER / "own_models.yaml").read_text().replace("resnet50", "test_resnet").replace("224", "32")
    Path("own.yaml").write_text(text.replace("  logger: false", "  logger: false\n  accelerator: cpu"))
    options = ["--config=own.yaml", "--data.init_args.num_workers=0", "--trainer.enable_progress_bar=false"]
    main(["validate", *options])
    card = Path("merged", "README.md").read_text()
    assert "| this model |" in card
    model = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True)
    assert model.num_classes == 0
    main(["validate", *options, "--model.init_args.recipe.ratio=0", "--save=null"])
    assert "ties x 1 |" in Path("report", "report.md").read_text()
    assert Path("merged", "README.md").read_text() == card
