from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning.cli import main
from lwptv_lightning.cli.configured import mixed, say
from lwptv_lightning.recipe import MergeRecipe

NUMBERS = TensorDataset(torch.arange(20))
CONFIGURATION = """
model: {class_path: lwptv_lightning.zoo.zoo_module, init_args: {recipe: task_arithmetic}}
data: {class_path: lwptv_lightning.zoo.zoo_suite, init_args: {size: 5}}
trainer: {logger: false, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
recipes: {plain: task_arithmetic, other: ties}
"""


@pytest.fixture(autouse=True)
def configuration(tmp_path, monkeypatch):
    (tmp_path / "all.yaml").write_text(CONFIGURATION)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").write_text("before")


def order(loader):
    return [int(number) for (batch,) in loader for number in batch]


def test_samples_are_mixed_the_same_each_time():
    loader = DataLoader(NUMBERS, batch_size=8)
    first = order(mixed(loader))
    assert sorted(first) == list(range(20)) != first
    assert order(mixed(loader)) == first
    learning = mixed(loader, each_epoch=True)
    assert order(learning) != order(learning)


def test_a_mixed_loader_begins_its_workers_alike():
    loader = DataLoader(NUMBERS, batch_size=2, num_workers=1, worker_init_fn=print, persistent_workers=True, timeout=9)
    for made in (mixed(loader), mixed(loader, each_epoch=True)):
        assert (made.num_workers, made.worker_init_fn, made.persistent_workers, made.timeout) == (1, print, True, 9)


def test_a_loader_with_an_order_of_its_own_keeps_it():
    loader = DataLoader(NUMBERS, sampler=[3, 1], batch_size=2)
    assert mixed(loader) is loader


REFUSED = {
    "collect for no rule": (["collect", "--out", "f.safetensors"], "collect: the rule 'task_arithmetic' needs no stat"),
    "collect nowhere": (["collect", "--model.recipe=fisher", "--out=there.csv/f.safetensors"], "collect: .*there.csv"),
    "collect elsewhere": (["collect", "--model.recipe=fisher", "--out=f.pt"], "collect: .*must end in .safetensors"),
    "learn without end": (["learn", "--out", "r.json"], "learn: say how long to learn, such as --trainer.max_steps"),
    "learn where it is lost": (
        ["learn", "--out=r.json", "--trainer.max_steps=1", "--trainer.strategy=ddp_spawn", "--trainer.devices=2"],
        "learn: the coefficients would be lost .*use strategy='ddp'",
    ),
    "replace": (["sweep", "--out", "there.csv"], "sweep: there.csv exists"),
    "unknown rule": (["sweep", "--recipes", "{a: tise}"], "sweep: unknown merging rule 'tise'.*'ties'"),
    "no recipe's file": (["validate", "--model.recipe", "none.json"], "validate: .*none.json"),
    "data": (["validate", "--model.recipe=fisher", "--data_statistics=x.safetensors"], "validate: .*x.safetensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_said_first(case, tmp_path):
    (command, *words), message = REFUSED[case]
    with pytest.raises(SystemExit, match=f"(?s)^lwptv {message}"):
        main([command, "--config", "all.yaml", *words])
    assert {path.name for path in tmp_path.iterdir()} == {"all.yaml", "there.csv"}
    assert (tmp_path / "there.csv").read_text() == "before"


@pytest.mark.parametrize("command", ["collect", "learn"])
def test_what_lacks_is_named(command, capsys):
    words = ["--model.recipe", "fisher"] if command == "collect" else ["--trainer.max_steps", "1"]
    with pytest.raises(SystemExit, match=r"^2$"):
        main([command, "--config", "all.yaml", *words])
    assert capsys.readouterr().err == f"lwptv {command}: error: the following arguments are required: --out\n"


def test_what_is_written_by_two_processes_is_said_once(capsys):
    for is_first in (True, False):
        say(SimpleNamespace(trainer=SimpleNamespace(is_global_zero=is_first)), "It is in r.json")
    assert capsys.readouterr().out == "It is in r.json\n"


def test_learning_may_end_by_the_clock():
    main(["learn", "--config", "all.yaml", "--out", "r.json", "--trainer.max_time", "00:00:00:01"])
    assert MergeRecipe.from_json(Path("r.json").read_text()).rule.name == "adamerging"
