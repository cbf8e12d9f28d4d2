"""What README shows is run: every command and every block of Python, each in a folder that has what it names."""

import copy
import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import yaml
from _helpers.own_models import write_checkpoint
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lwptv_lightning
from lwptv_lightning import open_checkpoint
from lwptv_lightning.cli import learn, main
from lwptv_lightning.rules import RULES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL = "test_convnext"
ELSEWHERE = {
    "pip install": ".ci/run",
    "pytest": ".ci/run",
    "python examples/make_experts.py": "tests/test_examples.py",
    "lwptv init": "tests/test_three_commands.py",
    "lwptv tune": "tests/test_three_commands.py",
    "xdg-open": "tests/test_three_commands.py",
    "lwptv demo": "tests/cli/test_demo.py",
    "lwptv push": "tests/cli/test_push.py",
}
"""Beginnings of commands to the file whose tests run them."""


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def commands(block):
    """The commands of a block, without their comments."""
    for line in block.splitlines():
        yield from (command.strip() for command in re.sub(r"\s#.*", "", line).split("&&") if command.strip())


def is_run_elsewhere(command):
    return any(command.startswith(beginning) for beginning in ELSEWHERE)


HERE = [block for block in blocks("bash") if any(not is_run_elsewhere(command) for command in commands(block))]


def like(base, seed):
    """Return a fine-tuned model: the base with noise."""
    model, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * parameter.std(correction=0) * noise)
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with all that the commands name."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base = timm.create_model(MODEL, num_classes=2)
    for stem, kind in (("base", "safetensors"), ("timm_folder", "timm")):
        write_checkpoint(base, tmp_path / stem, kind)
    for seed, (task, kind) in enumerate({"svhn": "safetensors", "gtsrb": "ckpt"}.items()):
        write_checkpoint(like(base, seed), tmp_path / task, kind)
        for number in range(8):
            path = tmp_path / "images" / task / str(number % 2) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (30 * number, 200 * (number % 2), 90)).save(path)
    for stem, seed in (("base", None), ("expert_a", 1), ("expert_b", 2)):
        model = base if seed is None else like(base, seed)
        write_checkpoint(model, tmp_path / "large" / stem / "model", "safetensors")
    tasks = {"svhn": "svhn.safetensors", "gtsrb": "gtsrb.ckpt"}
    data = {"id": {task: f"images/{task}" for task in tasks}, "batch_size": 4, "num_workers": 0}
    trainer = {"accelerator": "cpu", "logger": False}
    suite = {"model": MODEL, "base": "base.safetensors", "tasks": tasks, "data": data, "trainer": trainer}
    Path("suite.yaml").write_text(yaml.safe_dump(suite | {"model_arguments": {"num_classes": 2}}))
    return tmp_path


@pytest.mark.parametrize("block", HERE, ids=lambda block: block.split("\n")[0][:30])
def test_a_block_of_commands_runs(block, folder, monkeypatch):
    monkeypatch.setattr(learn, "STEPS", 2)
    if "expert_a/" in block:
        monkeypatch.chdir(folder / "large")
    written = []
    for command in commands(block):
        if is_run_elsewhere(command):
            continue
        program, *words = shlex.split(command)
        assert program == "lwptv"
        main(words)
        written += [words[words.index("--out") + 1]] if "--out" in words else []
    assert written
    for path in written:
        there = Path(path)
        shards = there.with_name(f"{there.name}.index.json")
        assert there.exists() or shards.exists(), path


def test_what_is_run_elsewhere_is_run_there():
    shown = [command for block in blocks("bash") for command in commands(block)]
    for beginning, file in ELSEWHERE.items():
        assert any(command.startswith(beginning) for command in [*shown, *re.findall(r"`([^`\n]+)`", TEXT)]), beginning
        words = beginning.split()
        if file.startswith("tests/cli/"):
            assert file == f"tests/cli/test_{words[-1]}.py"
        if words[0] == "xdg-open":
            continue  # the page is looked at there
        assert words[-1].rpartition("/")[2].removesuffix(".py") in (ROOT / file).read_text(encoding="utf-8"), beginning


def loader(classes, size=4):
    return DataLoader(TensorDataset(torch.randn(size, 3, 32, 32), torch.arange(size) % classes), batch_size=2)


def test_the_block_that_merges_in_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks("python") if "timm.create_model" in block]
    torch.manual_seed(0)
    base = timm.create_model(MODEL, num_classes=0)
    write_checkpoint(base, tmp_path / "base", "safetensors")
    for seed, (task, kind) in enumerate({"svhn": "safetensors", "gtsrb": "ckpt"}.items()):
        write_checkpoint(like(base, seed), tmp_path / task, kind)
    sets = {"svhn": 3, "gtsrb": 4, "mnist": 2}
    given = {f"{name}_head": nn.Linear(base.num_features, classes) for name, classes in sets.items()}
    given |= {f"{name}_loader": loader(classes) for name, classes in sets.items()}
    assert "vit_base_patch32_224" in block
    exec(
        block.replace("vit_base_patch32_224", MODEL).replace("Trainer(", "Trainer(accelerator='cpu', logger=False, "),
        given,
    )
    assert {"id/avg", "ood/avg", "ood/mnist"} <= given["results"][0].keys() | given["results"][-1].keys()
    merged, start = open_checkpoint("merged.safetensors"), open_checkpoint("base.safetensors")
    assert set(merged.names) == set(start.names)
    assert any(not torch.equal(merged.read(name), start.read(name)) for name in start.names)


class FineTuning(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.encoder = timm.create_model(MODEL, num_classes=0)
        self.model.head = nn.Linear(self.model.encoder.num_features, 2)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.model.head(self.model.encoder(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_the_block_in_training_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks("python") if "OnlineMerge(" in block]
    torch.manual_seed(0)
    module = FineTuning()
    write_checkpoint(module.model.encoder, tmp_path / "base", "safetensors")
    write_checkpoint(like(module.model.encoder, 1), tmp_path / "svhn", "safetensors")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    given = {name: getattr(lwptv_lightning, name) for name in lwptv_lightning.__all__ if name in block} | {
        "make_encoder": partial(timm.create_model, MODEL, num_classes=0),
        "heads": {name: nn.Linear(module.model.encoder.num_features, 2) for name in ("svhn", "greek", "mnist")},
        "loaders": {name: loader(2) for name in ("id/svhn", "id/greek", "ood/mnist")},
        "Trainer": partial(Trainer, max_epochs=1, log_every_n_steps=1, **quiet),
        "ModelCheckpoint": ModelCheckpoint,
        "your_module": module,
        "train_loader": loader(2),
        "validation_loader": loader(2),
    }
    exec(block, given)
    assert "ood/mnist" in (tmp_path / "report" / "results.csv").read_text()
    assert (tmp_path / "greek").exists()


def test_no_block_of_python_is_left_out():
    assert len(blocks("python")) == 2


def test_rules_are_counted():
    assert set(re.findall(r"any of (\d+)", TEXT)) == {str(len(RULES))}


def test_what_readme_links_to_is_there():
    targets = {target for target in re.findall(r"\]\(([^)#\s]+)", TEXT) if "://" not in target}
    assert len(targets) > 20
    assert {target for target in targets if not (ROOT / target).exists()} == set()


def test_every_page_is_in_the_index():
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "examples" / "README.md"]:
        assert f"({path.relative_to(ROOT).as_posix()})" in TEXT


def test_every_example_is_in_the_index_of_examples():
    index = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "examples").iterdir():
        if path.suffix in (".py", ".yaml", ".ipynb") or (path / "README.md").exists():
            assert f"[{path.name}" in index
