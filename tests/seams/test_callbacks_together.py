"""Several callbacks that put weights into a module or read them: each sees the right ones, and the run none of it."""

import copy
import itertools
import os
import random
import signal
import sys
import warnings

import numpy as np
import pytest
import torch
from _helpers.processes import launch, report
from _helpers.states import noise
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors, merge, open_checkpoint, trace_layers
from lwptv_lightning.callbacks import (
    CollectDataStatistics,
    OnlineMerge,
    PruneAndMerge,
    RecalibrateBatchNorm,
    TaskVectorCheckpoint,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:You're using the WeightAveraging callback",
    "ignore:Be aware that when using `ckpt_path`",
)
RECIPE = MergeRecipe("ties", ratio=0.5)
OTHER = MergeRecipe("task_arithmetic", scale=0.25)


def make_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8))


def make_head(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 4))


class Run(LightningModule):
    """A fine-tuning run with dropout and batch normalisation, which looks at its weights when it is validated."""

    def __init__(self, lr=0.05, fails=None):
        super().__init__()
        self.net, self.head = make_net(), make_head()
        self.lr, self.fails = lr, fails
        self.seen, self.stages = [], []

    def forward(self, inputs):
        return self.head(self.net(inputs))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        if self.trainer.sanity_checking:
            return
        self.seen.append(copy.deepcopy(self.state_dict()))
        if self.fails is not None:
            raise self.fails

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)
        return batch[1]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.stages.append((self.training, self.trainer.training, self.trainer.validating))
        inputs, targets = batch
        return (inputs + torch.randn_like(inputs) if self.trainer.training else inputs), targets

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def data(seed, length=12, **options):
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.randn(length, 6, generator=generator), torch.randint(4, (length,), generator=generator)
    return DataLoader(TensorDataset(inputs, targets), batch_size=4, **options)


def tuned(state, seed):
    return {name: value.abs() if "var" in name else value for name, value in noise(state, seed, 0.5).items()}


def make_vectors():
    state = make_net().state_dict()
    return TaskVectors.open(state, {"a": tuned(state, 1), "b": tuned(state, 2)})


@pytest.fixture(scope="module")
def vectors():
    return make_vectors()


@pytest.fixture(scope="module")
def merged(vectors):
    return merge(vectors, RECIPE, trace_layers(make_net()))


def of(state, path):
    return {name.removeprefix(f"{path}."): value for name, value in state.items() if name.startswith(f"{path}.")}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.fixture
def fit(make_trainer):
    """``fit(callbacks, module)``: train from seeded draws, and return trainer and module."""

    def run(callbacks, module=None, epochs=2, **options):
        module = module or Run()
        torch.manual_seed(1), random.seed(1), np.random.seed(1)
        saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
        trainer = make_trainer(max_epochs=epochs, callbacks=callbacks, enable_checkpointing=saves, **options)
        trainer.fit(module, data(5, shuffle=True), data(6))
        return trainer, module

    return run


def left_behind(trainer, module):
    """All that a run leaves: weights, modes, averages, momenta and random states."""
    averages = [cb._average_model.state_dict() for cb in trainer.callbacks if isinstance(cb, WeightAveraging)]
    momenta = trainer.optimizers[0].state_dict()["state"]
    tensors = {f"w.{name}": value for name, value in module.state_dict().items()}
    tensors |= {f"a{i}.{name}": value for i, state in enumerate(averages) for name, value in state.items()}
    tensors |= {
        f"m{i}.{name}": value for i, slot in momenta.items() for name, value in slot.items() if value is not None
    }
    modes = [part.training for part in module.modules()]
    return tensors, modes, (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())


def assert_same_run(one, other):
    (tensors, *rest), (others, *others_rest) = left_behind(*one), left_behind(*other)
    assert same(tensors, others)
    assert rest == others_rest


def ema(**options):
    return EMAWeightAveraging(decay=0.5, **options)


AVERAGING = {
    "none": list,
    "EMA": lambda: [ema()],
    "EMA from a later step": lambda: [ema(update_starting_at_step=3)],
    "average": lambda: [WeightAveraging()],
    "SWA": lambda: [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)],
}


def online(vectors, **options):
    heads = {name: make_head(seed) for seed, name in enumerate(("mine", "a", "far"), start=3)}
    module = MergeModule(make_net(7), vectors, OTHER, heads=heads)
    loaders = {name: data(seed) for seed, name in enumerate(("id/mine", "id/a", "ood/far"), start=20)}
    return OnlineMerge(module, loaders, **({"task": "mine", "backbone": "net", "head": "head"} | options))


# The run is the one without the callback


@pytest.mark.parametrize("averaging", AVERAGING)
@pytest.mark.parametrize(
    "name", ["merge", "merge own", "two merges", "recalibrate", "online", "online steps", "task vector", "all"]
)
def test_a_run_is_to_the_bit_the_one_without(averaging, name, vectors, fit, tmp_path):
    callbacks = {
        "merge": lambda: [PruneAndMerge(vectors, RECIPE)],
        "merge own": lambda: [PruneAndMerge(vectors, "dare", task="mine")],
        "two merges": lambda: [PruneAndMerge(vectors, RECIPE), PruneAndMerge(vectors, OTHER, task="mine")],
        "recalibrate": lambda: [RecalibrateBatchNorm(data(9, shuffle=True))],
        "online": lambda: [online(vectors)],
        "online steps": lambda: [online(vectors, every_n_steps=2)],
        "task vector": lambda: [TaskVectorCheckpoint(tmp_path, "mine", backbone="net")],
    }
    callbacks["all"] = lambda: [callbacks[each]()[0] for each in callbacks if each not in ("all", "online steps")]
    plain = fit(AVERAGING[averaging]())
    watched = fit([*callbacks[name](), *AVERAGING[averaging]()])
    assert_same_run(watched, plain)


@pytest.mark.parametrize("averaging", ["none", "EMA", "SWA"])
@pytest.mark.parametrize(("error", "raised"), [(ValueError, ValueError), (KeyboardInterrupt, SystemExit)])
def test_a_failed_run_leaves_what_it_leaves_without(averaging, error, raised, vectors, fit):
    handler, runs = signal.getsignal(signal.SIGINT), []
    for merges in (False, True):
        mine = [
            PruneAndMerge(vectors, RECIPE),
            RecalibrateBatchNorm(data(9)),
            PruneAndMerge(vectors, OTHER),
            online(vectors),
        ]
        module, averages = Run(fails=error("stop")), AVERAGING[averaging]()
        try:
            with pytest.raises(raised):
                fit([*(mine if merges else []), *averages], module)
        finally:
            signal.signal(signal.SIGINT, handler)  # Lightning leaves the signal ignored
        runs.append((module.state_dict(), [each._average_model.state_dict() for each in averages]))
    assert same(runs[0][0], runs[1][0])
    assert all(same(*pair) for pair in zip(runs[0][1], runs[1][1], strict=True))


class Fails(Callback):
    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            raise RuntimeError("stop")


def test_a_merge_that_fails_leaves_the_raw_weights_and_the_average(vectors, fit):
    averages, module = ema(), Run()
    with pytest.raises(ValueError, match="needs statistics"):
        fit([averages, PruneAndMerge(vectors, "fisher")], module)
    plain, alone = Run(), ema()
    with pytest.raises(RuntimeError, match="stop"):
        fit([alone, Fails()], plain)
    assert same(module.state_dict(), plain.state_dict())
    assert same(averages._average_model.state_dict(), alone._average_model.state_dict())


# Which weights are evaluated


ORDERS = list(itertools.permutations(range(3)))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("averaging", ["EMA", "average", "SWA"])
def test_merged_weights_are_evaluated_whatever_averages(averaging, order, vectors, merged, fit, tmp_path):
    callbacks = [PruneAndMerge(vectors, RECIPE), *AVERAGING[averaging](), TaskVectorCheckpoint(tmp_path, "x")]
    _, module = fit([callbacks[index] for index in order])
    _, plain = fit(AVERAGING[averaging]())
    assert len(module.seen) == len(plain.seen) > 0
    for seen, without in zip(module.seen, plain.seen, strict=True):
        assert same(of(seen, "net"), merged)
        assert same(of(seen, "head"), of(without, "head"))  # what is not merged is what Lightning validates


@pytest.mark.parametrize("averaging_first", [True, False])
def test_averaged_weights_join_where_lightning_validates_them(averaging_first, vectors, fit):
    _, plain = fit([ema()])
    callback = PruneAndMerge(vectors, OTHER, task="mine")
    _, module = fit([ema(), callback] if averaging_first else [callback, ema()])
    for seen, without in zip(module.seen, plain.seen, strict=True):
        assert same(of(seen, "net"), merge(vectors.with_task("mine", of(without, "net")), OTHER))


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_of_two_merges_the_last_counts_and_the_own_weights_come_back(stage, vectors, make_trainer):
    module = Run()
    before = copy.deepcopy(module.state_dict())
    callbacks = [PruneAndMerge(vectors, RECIPE), PruneAndMerge(vectors, OTHER, task="mine")]
    getattr(make_trainer(callbacks=callbacks), stage)(module, data(6))
    expected = merge(vectors.with_task("mine", of(before, "net")), OTHER)  # of the own weights, not of merged ones
    assert all(same(of(seen, "net"), expected) for seen in module.seen)
    assert module.seen
    assert same(module.state_dict(), before)


@pytest.mark.parametrize("swapped", [True, False])
def test_two_merges_into_different_backbones(swapped, make_trainer):
    module = Run()
    before = copy.deepcopy(module.state_dict())
    callbacks, expected = [], {}
    for seed, path in enumerate(("net", "head")):
        state = of(before, path)
        own = TaskVectors.open(copy.deepcopy(state), {"a": tuned(state, seed + 1)})
        callbacks.append(PruneAndMerge(own, OTHER, backbone=path))
        expected[path] = merge(own, OTHER)
    make_trainer(callbacks=callbacks[::-1] if swapped else callbacks).validate(module, data(6), verbose=False)
    for path in expected:
        assert same(of(module.seen[0], path), expected[path])
    assert same(module.state_dict(), before)


def test_two_merges_of_a_merge_module_end_with_the_last(vectors, make_trainer, tmp_path):
    module = MergeModule(make_net(7), vectors, RECIPE)
    trainer = make_trainer(callbacks=[PruneAndMerge(recipe=RECIPE), PruneAndMerge(recipe=OTHER)])
    trainer.validate(module, {"id/a": data(6)}, verbose=False)
    assert same(module.model.state_dict(), merge(vectors, OTHER))
    assert module.installed == OTHER


@pytest.mark.parametrize("stages", [["fit"], ["fit", "validate"]])
@pytest.mark.parametrize("averaging", ["none", "EMA", "SWA"])
def test_what_is_merged_for_good_is_what_is_validated_after(averaging, stages, vectors, fit):
    _, plain = fit(AVERAGING[averaging]())
    callbacks = [PruneAndMerge(vectors, OTHER, task="mine", stages=stages), *AVERAGING[averaging]()]
    trainer, module = fit(callbacks)
    expected = merge(vectors.with_task("mine", of(plain.state_dict(), "net")), OTHER)
    assert same(of(module.state_dict(), "net"), expected)
    trainer.callbacks = [each for each in trainer.callbacks if not isinstance(each, PruneAndMerge)]
    module.seen.clear()
    trainer.validate(module, data(6), verbose=False)
    assert all(same(of(seen, "net"), expected) for seen in module.seen)
    assert same(of(module.state_dict(), "net"), expected)


def test_two_merges_for_good_both_see_what_was_trained(vectors, fit):
    _, plain = fit([])
    _, module = fit([PruneAndMerge(vectors, each, task="mine", stages=["fit"]) for each in (RECIPE, OTHER)])
    assert same(of(module.state_dict(), "net"), merge(vectors.with_task("mine", of(plain.state_dict(), "net")), OTHER))


# What reads weights


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("schedule", [{}, {"every_n_steps": 2}])
def test_online_merge_takes_the_weights_that_lightning_validates(order, schedule, vectors, fit, monkeypatch):
    taken, expected = [], []

    class Watching(MergeModule):
        def merge_(self, **options):
            options["vectors"].expert("mine", "0.weight")
            own = options["vectors"]
            taken.append({name: own.expert("mine", name).clone() for name in own.shared_names})
            return super().merge_(**options)

    def observe(averages):
        class Observer(Callback):
            def on_train_batch_end(self, trainer, pl_module, *_):
                if trainer.global_step % 2 == 0:
                    expected.append(copy.deepcopy(of(averages._average_model.module.state_dict(), "net")))

        return Observer()

    averages = ema()
    callback = online(vectors, **schedule)
    callback.module.__class__ = Watching
    callbacks = [PruneAndMerge(vectors, RECIPE), averages, callback]
    ordered = [callbacks[index] for index in order]
    if schedule:
        fit([*ordered, observe(averages)])
    else:
        _, plain = fit([ema()])
        expected = [of(seen, "net") for seen in plain.seen[:: len(data(6))]]
        fit(ordered)
    assert len(taken) == len(expected) > 1
    assert all(same(*pair) for pair in zip(taken, expected, strict=True))


def test_online_merge_beside_a_merge_logs_what_it_logs_alone(vectors, fit):
    figures = []
    for callbacks in ([], [PruneAndMerge(vectors, RECIPE)]):
        for order in (1, -1):
            trainer, _ = fit([*callbacks, online(vectors)][::order])
            logged = {name: float(figure) for name, figure in trainer.callback_metrics.items() if "merged/" in name}
            figures.append(logged)
    assert figures[0]
    assert all(each == figures[0] for each in figures)


@pytest.mark.parametrize("schedule", [{}, {"every_n_steps": 2}])
@pytest.mark.parametrize("validates", [True, False])
def test_online_merge_sends_its_batches_as_those_of_a_validation(schedule, validates, vectors, make_trainer):
    module, callback = Run(), online(vectors, **schedule)
    trainer = make_trainer(max_epochs=1, callbacks=[callback], num_sanity_val_steps=0)
    trained = []
    module.on_before_batch_transfer = lambda batch, index: trained.append(trainer.training) or batch
    trainer.fit(module, data(5), data(6) if validates else None)
    assert trained.count(True) == len(data(5))
    assert len(trained) > len(data(5)) * 2
    assert set(module.stages) == {(True, True, False), (False, False, True)}
    assert all(part.training for part in module.modules())


def test_online_merge_refuses_what_the_run_trains(vectors, fit):
    module = Run()
    callback = online(vectors)
    callback.module.heads._modules["mine"] = module.head
    with pytest.raises(ValueError, match=r"'heads\.mine\.0\.weight' of its module is 'head\.0\.weight' of the module"):
        fit([callback], module)
    callback = online(vectors)
    callback.module.model = module.net
    with pytest.raises(ValueError, match="which merging would overwrite; give it a copy"):
        fit([callback], module)


@pytest.mark.parametrize("name", ["recalibrate", "online"])
def test_persistent_workers_of_the_runs_own_loader_go_on(name, vectors, make_trainer):
    runs = []
    for watches in (False, True):
        module, loader = Run(), data(5, length=16, shuffle=True, num_workers=1, persistent_workers=True)
        callbacks = []
        if watches and name == "recalibrate":
            callbacks = [RecalibrateBatchNorm(loader)]
        elif watches:
            merged = MergeModule(make_net(7), vectors, OTHER, heads={"mine": make_head(3)})
            callbacks = [OnlineMerge(merged, {"id/mine": loader}, task="mine", backbone="net", head="head")]
        torch.manual_seed(1)
        # A validation in the midst of an epoch, and thus of what the workers load.
        trainer = make_trainer(max_epochs=1, val_check_interval=2, callbacks=callbacks)
        trainer.fit(module, loader, data(6))
        runs.append((trainer, module))
    assert len(runs[0][1].seen) == len(runs[1][1].seen) > len(data(6))
    assert_same_run(*runs)


def test_two_online_merges_of_the_same_figures(vectors, fit):
    with pytest.raises(ValueError, match="two OnlineMerge log the same figures, such as 'merged/id/mine'"):
        fit([online(vectors), online(vectors)])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("averaging", ["none", "EMA", "SWA"])
def test_a_task_vector_is_of_the_weights_that_are_saved(averaging, order, vectors, fit, tmp_path):
    callbacks = [TaskVectorCheckpoint(tmp_path, "mine", backbone="net", at_end=False), PruneAndMerge(vectors, RECIPE)]
    callbacks += AVERAGING[averaging]()
    order = [index for index in order if index < len(callbacks)]
    fit([*(callbacks[index] for index in order), ModelCheckpoint(tmp_path, filename="saved")])
    saved = open_checkpoint(tmp_path / "saved.ckpt", prefix="net.")
    start, stored = make_net().state_dict(), load_file(tmp_path / "task_vector.safetensors")
    assert stored
    assert all(torch.equal(value, saved.read(name) - start[name]) for name, value in stored.items())


@pytest.mark.parametrize("averaging", AVERAGING)
@pytest.mark.parametrize("first", [True, False])
def test_a_task_vector_at_the_end_is_of_what_the_run_leaves(averaging, first, fit, tmp_path):
    callbacks = [TaskVectorCheckpoint(tmp_path, "mine", backbone="net"), *AVERAGING[averaging]()]
    _, module = fit(callbacks if first else callbacks[::-1])
    start, stored = make_net().state_dict(), load_file(tmp_path / "task_vector.safetensors")
    left = of(module.state_dict(), "net")
    assert all(torch.equal(value, left[name] - start[name]) for name, value in stored.items())


def test_two_task_vectors_need_two_folders(fit, tmp_path):
    with pytest.raises(ValueError, match=r"two TaskVectorCheckpoint write to .*; give each a folder of its own"):
        fit([TaskVectorCheckpoint(tmp_path, name, backbone=name) for name in ("net", "head")])


def test_a_checkpoint_saved_when_a_validation_ends_is_the_runs_own(vectors, fit, tmp_path):
    class Saves(Callback):
        def __init__(self, name):
            self.name = name

        def on_validation_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / self.name)

    fit([Saves("plain"), ema()])
    fit([Saves("merged"), PruneAndMerge(vectors, RECIPE), ema()])
    plain, merged = (torch.load(tmp_path / name, weights_only=False) for name in ("plain", "merged"))
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert same(plain[part], merged[part])


# Batch normalisation that is measured anew


def statistics(model, loader):
    """What a merged model's first batch normalisation sees."""
    hidden = [model[0](inputs) for inputs, _ in loader]
    return torch.stack([part.mean(0) for part in hidden]).mean(0).detach()


@pytest.mark.parametrize("recalibrates_first", [True, False])
@pytest.mark.parametrize("averaging", ["none", "EMA"])
def test_what_was_merged_is_recalibrated_and_nothing_else(recalibrates_first, averaging, vectors, merged, fit):
    _, plain = fit(AVERAGING[averaging]())
    callbacks = [PruneAndMerge(vectors, RECIPE), RecalibrateBatchNorm(data(9)), *AVERAGING[averaging]()]
    _, module = fit(callbacks[::-1] if recalibrates_first else callbacks)
    model = make_net()
    model.load_state_dict(merged)
    for seen, without in zip(module.seen, plain.seen, strict=True):
        torch.testing.assert_close(seen["net.1.running_mean"], statistics(model, data(9)))
        assert torch.equal(seen["net.0.weight"], merged["0.weight"])
        assert same(of(seen, "head"), of(without, "head"))


def test_a_module_of_its_own_is_recalibrated_for_the_evaluation_alone(make_trainer):
    module = Run()
    before = copy.deepcopy(module.state_dict())
    make_trainer(callbacks=[RecalibrateBatchNorm(data(9))]).validate(module, data(6), verbose=False)
    torch.testing.assert_close(module.seen[0]["net.1.running_mean"], statistics(module.net, data(9)))
    assert not torch.equal(module.seen[0]["head.0.running_mean"], before["head.0.running_mean"])
    assert same(module.state_dict(), before)


@pytest.mark.parametrize("callbacks", [[], [PruneAndMerge()]])
@pytest.mark.parametrize("first", [True, False])
def test_a_merge_module_is_recalibrated_after_its_merge(callbacks, first, vectors, merged, make_trainer):
    module = MergeModule(make_net(7), vectors, RECIPE)
    recalibrate = RecalibrateBatchNorm(data(9))
    trainer = make_trainer(callbacks=[recalibrate, *callbacks] if first else [*callbacks, recalibrate])
    for _ in range(2):
        trainer.validate(module, {"id/a": data(6)}, verbose=False)
        torch.testing.assert_close(module.model[1].running_mean, statistics(module.model, data(9)))
    assert torch.equal(module.model[0].weight, merged["0.weight"])


def test_what_recalibrates_without_a_batch_restores_everything(vectors, make_trainer):
    module = Run()
    before = copy.deepcopy(module.state_dict())
    trainer = make_trainer(callbacks=[PruneAndMerge(vectors, RECIPE), RecalibrateBatchNorm([])])
    with pytest.raises(ValueError, match="no batches to measure"):
        trainer.validate(module, data(6))
    assert same(module.state_dict(), before)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_it_recalibrates_in_the_trainers_precision(precision, vectors, make_trainer):
    module = MergeModule(make_net(7), vectors, RECIPE)
    trainer = make_trainer(callbacks=[RecalibrateBatchNorm(data(9))], precision=precision)
    trainer.validate(module, {"id/a": data(6)}, verbose=False)
    expected = statistics(copy.deepcopy(module.model).float(), data(9))
    torch.testing.assert_close(module.model[1].running_mean.float(), expected, atol=0.02, rtol=0.02)


def test_what_no_batch_goes_through_keeps_its_statistics(make_trainer):
    module = Run()
    module.forward = lambda inputs: module.net(inputs)  # the head is another step's
    module.validation_step = lambda batch, batch_idx: module.seen.append(copy.deepcopy(module.state_dict()))
    before = copy.deepcopy(module.state_dict())
    for norm in (before["head.0.running_mean"], module.head[0].running_mean):
        norm.fill_(3)
    make_trainer(callbacks=[RecalibrateBatchNorm(data(9))]).validate(module, data(6), verbose=False)
    assert same(of(module.seen[0], "head"), of(before, "head"))
    torch.testing.assert_close(module.seen[0]["net.1.running_mean"], statistics(module.net, data(9)))


def test_norms_of_heads_are_left_alone(vectors):
    module = MergeModule(make_net(7), vectors, heads={"a": make_head()}).merge_()
    before = copy.deepcopy(module.heads.state_dict())
    RecalibrateBatchNorm(data(9)).recalibrate_(module)
    assert same(module.heads.state_dict(), before)
    torch.testing.assert_close(module.model[1].running_mean, statistics(module.model, data(9)))


@pytest.mark.parametrize("stage", ["callback", "by hand"])
def test_a_compiled_model_is_recalibrated(stage, vectors, make_trainer):
    module = MergeModule(torch.compile(make_net(7), backend="eager"), vectors).merge_()
    for _ in range(2):
        if stage == "callback":
            trainer = make_trainer(callbacks=[RecalibrateBatchNorm(data(9))])
            trainer.validate(module, {"id/a": data(6)}, verbose=False)
        else:
            RecalibrateBatchNorm(data(9)).recalibrate_(module)
        plain = module.model._orig_mod
        torch.testing.assert_close(plain[1].running_mean, statistics(plain, data(9)))


def test_its_batches_go_through_the_modules_hooks(make_trainer):
    module = Run()
    module.on_after_batch_transfer = lambda batch, index: (batch[0] + 1, batch[1])
    make_trainer(callbacks=[RecalibrateBatchNorm(data(9))]).validate(module, data(6), verbose=False)
    expected = statistics(module.net, [(inputs + 1, None) for inputs, _ in data(9)])
    torch.testing.assert_close(module.seen[0]["net.1.running_mean"], expected)


def test_what_was_loaded_without_task_vectors_is_recalibrated(vectors, make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.validate(MergeModule(make_net(7), vectors, RECIPE), {"id/a": data(6)}, verbose=False)
    trainer.save_checkpoint(tmp_path / "merged.ckpt")
    loaded = MergeModule.load_from_checkpoint(tmp_path / "merged.ckpt", model=make_net(8))
    make_trainer(callbacks=[RecalibrateBatchNorm(data(9))]).validate(loaded, {"id/a": data(6)}, verbose=False)
    torch.testing.assert_close(loaded.model[1].running_mean, statistics(loaded.model, data(9)))


# What cannot stand side by side


class OwnAveraging(Callback):
    """Swaps other weights in for a validation, as many do by hand."""

    def __init__(self, start="on_validation_start", end="on_validation_end"):
        setattr(self, start, self.swap)
        setattr(self, end, self.swap)
        self.held = make_net(9).state_dict()

    def swap(self, trainer, pl_module):
        own = copy.deepcopy(pl_module.net.state_dict())
        pl_module.net.load_state_dict(self.held)
        self.held = own

    def on_validation_start(self, trainer, pl_module):
        pass


def test_another_callback_that_swaps_weights_is_beneath_or_refused(vectors, merged, make_trainer):
    for before in (True, False):
        module = Run()
        own = copy.deepcopy(module.state_dict())
        callbacks = [OwnAveraging(), PruneAndMerge(vectors, RECIPE)]
        trainer = make_trainer(callbacks=callbacks if before else callbacks[::-1])
        if before:
            trainer.validate(module, data(6), verbose=False)
            assert same(of(module.seen[0], "net"), merged)
        else:
            with pytest.raises(ValueError, match="merged weights were replaced before the first batch.*OwnAveraging"):
                trainer.validate(module, data(6), verbose=False)
            assert not module.seen
        assert same(module.state_dict(), own)


@pytest.mark.parametrize("other", [PruneAndMerge, lambda: RecalibrateBatchNorm(data(9))])
def test_data_statistics_are_of_the_tasks_own_models(other, vectors, make_trainer):
    module = MergeModule(make_net(7), vectors, RECIPE)
    trainer = make_trainer(callbacks=[CollectDataStatistics("gram"), other()])
    with pytest.raises(ValueError, match="CollectDataStatistics runs each task's own model"):
        trainer.validate(module, {f"id/{task}": data(6) for task in "ab"})


def test_two_kinds_of_data_statistics_are_collected_at_once(vectors, make_trainer):
    module = MergeModule(make_net(7), vectors, RECIPE)
    before = copy.deepcopy(module.state_dict())
    callbacks = [CollectDataStatistics(kind) for kind in ("gram", "fisher")]
    loaders = {f"id/{task}": data(6) for task in "ab"}
    make_trainer(callbacks=callbacks).validate(module, loaders, verbose=False)
    assert same(module.state_dict(), before)
    for callback in callbacks:
        alone = CollectDataStatistics(callback.kind)
        make_trainer(callbacks=[alone]).validate(module, loaders, verbose=False)
        assert all(same(callback.statistics[task], alone.statistics[task]) for task in "ab")


# On two processes; run as a script, this file is what each of them does


def train_on_two(folder, watches):
    vectors, module = make_vectors(), Run()
    watching = [
        OnlineMerge(online(vectors).module, online(vectors).loaders, task="mine", backbone="net", head="head"),
        PruneAndMerge(vectors, RECIPE),
        RecalibrateBatchNorm(data(9)),
        TaskVectorCheckpoint(folder, "x", backbone="net"),
    ]
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    callbacks = [*(watching if watches else []), ema()]
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, callbacks=callbacks, **quiet)
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    trainer.fit(module, data(5, shuffle=True), data(6))
    return trainer, module


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    plain, watched = (train_on_two(sys.argv[1], watches) for watches in (False, True))
    (tensors, *rest), (others, *others_rest) = left_behind(*plain), left_behind(*watched)
    merged_ones = merge(make_vectors(), RECIPE, trace_layers(make_net()))
    found = {
        "changed": [name for name, value in tensors.items() if not torch.equal(value, others[name])],
        "rest": rest == others_rest,
        "evaluated": all(torch.equal(seen["net.0.weight"], merged_ones["0.weight"]) for seen in watched[1].seen),
        "figures": {name: float(value) for name, value in watched[0].callback_metrics.items()},
    }
    report(sys.argv[1], int(os.environ["RANK"]), found)
    torch.distributed.destroy_process_group()


def test_on_two_processes_too(tmp_path):
    first, second = launch(__file__, tmp_path, ranks=2)
    assert first == second
    assert (first["changed"], first["rest"], first["evaluated"]) == ([], True, True)
    assert "merged/id/mine" in first["figures"]
