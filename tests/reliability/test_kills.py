"""Processes that are killed at random moments: what they wrote is whole or absent, and the next one succeeds."""

import csv
import io
import json
import random
import signal
import time
from unittest import mock

import torch
from _helpers.faults import KILLS, Faults
from _helpers.forks import forked, kill, status_of
from _helpers.written_models import FILES, values_in, write_model
from lightning.pytorch import Trainer
from PIL import Image
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import MergeModule, MergeRecipe, MergeReport, TaskVectors, open_checkpoint
from lwptv_lightning.checkpoints import payload_problem
from lwptv_lightning.files import write_whole
from lwptv_lightning.search import SweepResult, sweep
from lwptv_lightning.zoo import demo, run_demo


def killed(action, folder, whole, times):
    """Kill it again and again in one folder, at random moments and file operations; return how often that was."""
    draw, number = random.Random(0), 0
    counted, begin = Faults(folder), time.monotonic()
    with counted.injected():
        action()
    duration = time.monotonic() - begin
    while number < times:
        if draw.random() < 0.5:
            child = forked(action)
            time.sleep(draw.uniform(0, duration))
            status = kill(child)
        else:
            faults = Faults(folder, draw.randrange(len(counted.done)), draw.choice(list(KILLS)))

            def run(faults=faults):
                with faults.injected():
                    action()

            status = status_of(forked(run))
        assert status in (0, -signal.SIGKILL)
        number += status != 0
        whole(folder)
    assert status_of(forked(action)) == 0
    whole(folder)
    assert [path.name for path in folder.iterdir() if path.name.endswith((".tmp", ".lock"))] == []
    return number


def whole_report(folder):
    """See that each file of a report, if it is there, is whole."""
    for path in (*folder.iterdir(), *folder.glob("figures/*")):
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".csv":
            with path.open(newline="") as file:
                assert len({len(line) for line in csv.reader(file)}) == 1
        elif path.suffix == ".json":
            assert MergeRecipe.from_dict(json.loads(path.read_text()))
        elif path.suffix == ".safetensors":
            assert payload_problem(path) is None
            assert open_checkpoint(path).names
        elif path.suffix in (".html", ".svg"):
            assert path.read_text().rstrip().endswith(f"</{path.suffix[1:]}>")
        elif path.suffix == ".md":
            assert path.read_text().startswith("# ")
            assert path.read_text().endswith("\n")


def killed_merges(before, size, folder, times):
    write_model(folder / "m.safetensors", 1.0, before)

    def whole(_):
        *_, by_folder = values = values_in(folder)
        assert by_folder in (1.0, 2.0)
        assert set(values) <= {1.0, 2.0, None}

    number = killed(lambda: write_model(folder / "m.safetensors", 2.0, size) and None, folder, whole, times)
    assert values_in(folder)[2] == 2.0
    assert len(list(folder.iterdir())) == FILES[size]
    return number


def test_killed_merges(amount, tmp_path, row):
    number = 0
    for before in ("single", "sharded"):
        for size in ("single", "sharded"):
            folder = tmp_path / f"{before}-{size}"
            folder.mkdir()
            number += killed_merges(before, size, folder, amount(1, 30))
    row(f"{number} kills of merges over an old model", "the old model or the new one; the next run left nothing else")


def module():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    tasks = {
        name: {key: tensor + 0.1 * number for key, tensor in model.state_dict().items()}
        for number, name in enumerate("ab", 1)
    }
    return MergeModule(model, TaskVectors.open(model, tasks), MergeRecipe(ratio=0.5))


def loaders():
    data = TensorDataset(torch.randn(8, 6), torch.randint(0, 4, (8,)))
    return {name: DataLoader(data, batch_size=4) for name in ("id/a", "ood/b")}


def trainer(**options):
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(accelerator="cpu", devices=1, logger=False, **options)


def test_killed_reports(amount, tmp_path, row):
    def report():
        torch.manual_seed(0)  # of the same models: a report of other ones is not replaced
        callback = MergeReport(tmp_path, Console(file=io.StringIO()))
        trainer(callbacks=[callback]).validate(module(), loaders(), verbose=False)

    number = killed(report, tmp_path, whole_report, amount(1, 30))
    pictures = {"saliency.png", "id_ood.png"}
    names = {"report.html", "report.md", "results.csv", "recipe.json", "figures", *pictures}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert pictures < {path.name for path in (tmp_path / "figures").iterdir()}
    row(f"{number} kills of validations with `MergeReport`", "each file whole or absent; the next run succeeded")


def test_killed_sweeps(amount, tmp_path, row):
    def run():
        candidates = {f"{scale}": MergeRecipe(scale=scale / 10) for scale in range(6)}
        found = sweep(trainer(), module(), candidates, loaders())
        lines = [f"{name},{found.figures(name)['id/avg']}\n" for name in found.names]
        write_whole(tmp_path / "sweep.csv", "".join(lines))

    number = killed(run, tmp_path, whole_report, amount(1, 30))
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.csv"]
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 6
    row(f"{number} kills of sweeps that write their figures", "the file whole or absent; the next run succeeded")


def measured(trainer, module, candidates, loaders):
    """Return what a sweep of the demo might have found, without the minute that it takes."""
    generator = torch.Generator().manual_seed(0)
    outcomes = {name: torch.rand(len(candidates), 4, generator=generator) > 0.5 for name in loaders}
    seconds, changes = dict.fromkeys(candidates, 0.1), dict.fromkeys(candidates, 1.0)
    return SweepResult(tuple(candidates), outcomes, seconds, changes)


def test_killed_demos(amount, tmp_path, row):
    def run():
        run_demo(tmp_path, size=2, console=Console(file=io.StringIO()))

    with mock.patch.object(demo, "sweep", measured):
        number = killed(run, tmp_path, whole_report, amount(1, 24))
    assert len(list(tmp_path.iterdir())) == 6
    row(f"{number} kills of demos, whose figures were at hand", "each file whole or absent; the next run succeeded")
