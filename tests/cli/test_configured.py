from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from _helpers.own_suite import SUITE, write_suite
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning.cli import main
from lwptv_lightning.cli.configured import configured, id_samples, mixed, say
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


def suite_of(text, tmp_path):
    return str(write_suite(tmp_path / "own", text))


def test_learning_and_statistics_read_validation_sets(tmp_path, capsys):
    with configured("learn", ["--config", suite_of(SUITE, tmp_path)]) as made:
        found = id_samples(made)
        assert found["id/cats"] is made.datamodule.validation["id/cats"]
        assert found["id/cars"] is made.datamodule.loaders["id/cars"]
        assert "no validation set for id/cars, whose reported samples are read" in capsys.readouterr().err
        made.datamodule.validation = {}
        assert list(id_samples(made)) == ["id/cats", "id/cars"]


def test_what_is_printed_is_read_back_from_anywhere(tmp_path, monkeypatch, capsys):
    suite = suite_of(SUITE, tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["validate", "--config", suite, "--recipe.ratio=0.25", "--trainer.limit_val_batches=3", "--print_config"])
    assert not stopped.value.code
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "printed.yaml").write_text(capsys.readouterr().out)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with configured("validate", ["--config", "printed.yaml"]) as made:
        assert (made.model.recipe.ratio, made.trainer.limit_val_batches) == (0.25, 3)
        assert list(made.datamodule.loaders) == ["id/cats", "id/cars", "ood/far/cats_drawn"]


FLAT = {
    "a key": (("model:", "modle:"), "modle: unknown key. Did you mean 'model'?"),
    "a trainer's": (
        ("accelerator: cpu", "acelerator: cpu"),
        "trainer.acelerator: unknown key. Did you mean 'trainer.accelerator'?",
    ),
    "a number": (
        ("logger: false", "logger: false, max_epochs: many"),
        "trainer.max_epochs: expected a whole number or null, not 'many'.",
    ),
    "a section": (
        ("{accelerator: cpu, logger: false, enable_progress_bar: false, enable_model_summary: false}", "3"),
        "trainer: expected a mapping, not 3.",
    ),
    "a callback": (
        ("logger: false", "logger: false, callbacks: [{class_path: EarlyStoping}]"),
        "There is no class 'EarlyStoping'. Did you mean 'EarlyStopping'?",
    ),
    "a folder": (("images/test/cats", "images/test/cat"), "there is no such folder. Did you mean 'cats'?"),
    "a head": (
        ("cats_drawn: cats", "cats_drawn: cars"),
        "data.ood.far/cats_drawn: the class 'cats_0' and 1 more of this set is unknown to its head, 'cars'.",
    ),
}


@pytest.mark.parametrize("case", FLAT)
def test_a_wrong_configuration_is_told_in_one_line_by_its_key(case, tmp_path, capsys):
    change, message = FLAT[case]
    assert change[0] in SUITE
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["validate", "--config", suite_of(SUITE.replace(*change), tmp_path)])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lwptv")]
    assert len(said) == 1
    assert message in said[0]
    assert "Union" not in said[0]
