import copy
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lwptv_lightning import MergeModule, MergeRecipe, OnlineMerge, Provenance, TaskVectors
from lwptv_lightning.registry import UnknownNameError

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
RECIPE = MergeRecipe("dare", ratio=0.5)
NAMES = ("id/mine", "id/other", "ood/far")


class Noisy(Dataset):
    """Draws from every global generator, as augmentations do."""

    def __init__(self, seed, length=12):
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(length, 6, generator=generator)
        self.targets = torch.randint(0, 4, (length,), generator=generator)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        noise = torch.rand(()) + random.random() + float(np.random.rand())
        return self.inputs[index] + 0.1 * noise, self.targets[index]


class FineTuning(LightningModule):
    """A module of someone else's, with dropout and running statistics."""

    def __init__(self, lr=0.01):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = make_net()
            self.head = nn.Linear(8, 4)
        self.losses = []
        self.lr = lr

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.head(self.net(batch[0])), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("loss", nn.functional.cross_entropy(self.head(self.net(batch[0])), batch[1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def make_net():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8))


def still(seed, length=7):
    noisy = Noisy(seed, length)
    return DataLoader(TensorDataset(noisy.inputs, noisy.targets), batch_size=3)


@pytest.fixture
def experts(fine_tuned):
    base = FineTuning().net.state_dict()
    return TaskVectors.open(base, {"other": fine_tuned(base, 1, 0.5)})


@pytest.fixture
def merge_module(experts):
    torch.manual_seed(3)
    heads = {name.partition("/")[2]: nn.Linear(8, 4) for name in NAMES}
    return MergeModule(make_net(), experts, RECIPE, heads=heads)


@pytest.fixture
def online(merge_module):
    """``online(**options)``: the callback on still data."""

    def make(**options):
        loaders = {name: still(seed) for seed, name in enumerate(NAMES)}
        return OnlineMerge(merge_module, loaders, **({"task": "mine", "backbone": "net", "head": "head"} | options))

    return make


def train(module, callbacks, make_trainer, generator=None, validates=True, **options):
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    loader = DataLoader(Noisy(5), batch_size=4, shuffle=True, generator=generator)
    settings = {"max_epochs": 2, "num_sanity_val_steps": 1, "log_every_n_steps": 1} | options
    trainer = make_trainer(callbacks=callbacks, **settings)
    trainer.fit(module, loader, DataLoader(Noisy(6), batch_size=4) if validates else None)
    return trainer


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        ({"every_n_epochs": 1}, {}),
        ({"every_n_epochs": 1}, {"inference_mode": False}),
        ({"every_n_epochs": 2}, {"validates": False}),
        ({"every_n_steps": 2}, {"accumulate_grad_batches": 2}),
    ],
)
def test_training_is_the_same_to_the_bit(schedule, options, merge_module, make_trainer):
    runs = []
    for merges in (False, True):
        # The evaluation draws from every generator there is, also from the one that shuffles the training data.
        shared = torch.Generator().manual_seed(2)
        loaders = {name: DataLoader(Noisy(seed), batch_size=5, generator=shared) for seed, name in enumerate(NAMES)}
        callback = OnlineMerge(merge_module, loaders, task="mine", backbone="net", head="head", **schedule)
        module = FineTuning()
        trainer = train(module, [callback] if merges else [], make_trainer, shared, **options)
        assert ("merged/ood/avg" in trainer.callback_metrics) == merges
        states = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
        optimizer = trainer.optimizers[0].state_dict()["state"]
        runs.append((module, states, {f"{i}{n}": t for i, slot in optimizer.items() for n, t in slot.items()}))
    (plain, states, moments), (watched, states_after, moments_after) = runs
    assert plain.losses == watched.losses
    assert len(plain.losses) == 6
    assert same(plain.state_dict(), watched.state_dict())
    assert same(moments, moments_after)
    assert states == states_after


def test_figures_are_those_of_the_merged_model(online, merge_module, experts, make_trainer):
    module = FineTuning()
    callback = online()
    trainer = train(module, [callback], make_trainer)
    heads = {name: copy.deepcopy(merge_module.head(name)) for name in ("other", "far")} | {"mine": module.head}
    tasks = {"other": {name: experts.expert("other", name) for name in experts.shared_names}, "mine": module.net}
    base = {name: experts.base(name) for name in experts.shared_names}
    by_hand = MergeModule(make_net(), TaskVectors.open(base, tasks), RECIPE, heads=heads)
    found = make_trainer().validate(by_hand, callback.loaders, verbose=False)
    figures = {f"merged/{name}": value for part in found for name, value in part.items()}
    assert {*figures} == {f"merged/{name}" for name in (*NAMES, "id/avg", "ood/avg")}
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("merged/")}
    assert logged == pytest.approx(figures, abs=1e-7)
    assert callback.module.provenance() == Provenance()  # it holds on to no checkpoint


def test_the_models_own_output_can_be_the_logits(experts, make_trainer):
    callback = OnlineMerge(MergeModule(make_net(), experts, RECIPE), {"ood/far": still(0)}, task="mine", backbone="net")
    assert "merged/ood/avg" in train(FineTuning(), [callback], make_trainer).callback_metrics


@pytest.mark.parametrize(
    ("schedule", "options", "steps"),
    [
        ({}, {}, [3, 6, 9, 12]),
        ({"every_n_epochs": 2}, {}, [3, 6, 12]),
        ({"every_n_epochs": 2}, {"validates": False}, [3, 6, 12]),
        ({"every_n_steps": 5}, {}, [5, 10]),
        ({"every_n_steps": 2}, {"accumulate_grad_batches": 3}, [2, 4]),
        ({}, {"val_check_interval": 1, "max_epochs": 1}, [1, 2, 3]),
    ],
)
def test_schedule(schedule, options, steps, online, make_trainer, monkeypatch):
    seen = []
    callback = online(**schedule)
    evaluate = callback.evaluate
    monkeypatch.setattr(callback, "evaluate", lambda trainer: seen.append(trainer.global_step) or evaluate(trainer))
    train(FineTuning(), [callback], make_trainer, **({"max_epochs": 4} | options))
    assert seen == steps


def test_a_validation_outside_of_fit_is_left_alone(online, make_trainer):
    trainer = make_trainer(callbacks=[online()])
    trainer.validate(FineTuning(), still(0), verbose=False)
    assert not [name for name in trainer.callback_metrics if name.startswith("merged/")]


def test_its_figures_drive_checkpoints_and_early_stopping(online, make_trainer, tmp_path):
    best = ModelCheckpoint(tmp_path / "best", monitor="merged/ood/avg", mode="max")
    # Without learning the figure stays, so that the second epoch is the last.
    stopping = EarlyStopping("merged/id/avg", mode="max", patience=1)
    callbacks = [online(), best, stopping]
    trainer = train(FineTuning(lr=0.0), callbacks, make_trainer, enable_checkpointing=True, max_epochs=5)
    assert trainer.current_epoch == 2
    assert best.best_model_score == trainer.callback_metrics["merged/ood/avg"]


def test_figures_after_steps_drive_checkpoints(online, make_trainer, tmp_path):
    best = ModelCheckpoint(tmp_path / "best", monitor="merged/ood/avg", mode="max", every_n_train_steps=2)
    trainer = train(FineTuning(), [online(every_n_steps=2), best], make_trainer, enable_checkpointing=True)
    assert best.best_model_score is not None
    assert trainer.global_step == 6


def test_a_fast_dev_run_evaluates_a_batch_of_each_loader(online, merge_module, make_trainer, monkeypatch):
    counted = []
    count = merge_module.count
    monkeypatch.setattr(merge_module, "count", lambda *batch: counted.append((batch[0], batch[2])) or count(*batch))
    train(FineTuning(), [online()], make_trainer, fast_dev_run=True)
    assert counted == [(name, 0) for name in NAMES]


def test_coefficients_without_the_trained_task_are_refused_before_training(experts, make_trainer):
    recipe = MergeRecipe(prune_on="parts", coefficients={"other": {"*": 0.5}})
    heads = {name.partition("/")[2]: nn.Linear(8, 4) for name in NAMES}
    module = MergeModule(make_net(), experts, recipe, heads=heads)
    callback = OnlineMerge(module, {"id/mine": still(0)}, task="mine", backbone="net", head="head")
    tuning = FineTuning()
    with pytest.raises(ValueError, match="hold none for these of the 2 tasks: mine"):
        make_trainer(callbacks=[callback], max_epochs=1).fit(tuning, still(1))
    assert not tuning.losses


def test_what_is_wrong_is_said_before_training(online, merge_module, make_trainer):
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1, not 0"):
        online(every_n_epochs=0)
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, not -1"):
        online(every_n_steps=-1)
    with pytest.raises(ValueError, match="task 'other' is among the experts already"):
        online(task="other")
    with pytest.raises(UnknownNameError, match="unknown head 'mime'. Did you mean 'mine'"):
        online(task="mime")
    with pytest.raises(ValueError, match="must be named 'id/<name>'"):
        OnlineMerge(merge_module, {"far": still(0)}, task="mine")
    for option in ("backbone", "head"):
        with pytest.raises(UnknownNameError, match=f"unknown {option} 'encoder'"):
            train(FineTuning(), [online(**{option: "encoder"})], make_trainer)
