"""Whatever is raised, wherever: a module keeps or gets back its weights, to the bit, and its next run is as any."""

import copy
import os
import random
import signal

import numpy as np
import pytest
import torch
from _helpers.interrupts import Moments, Thrown, copies
from _helpers.states import noise
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors
from lwptv_lightning.callbacks import OnlineMerge, PruneAndMerge, RecalibrateBatchNorm
from lwptv_lightning.rules import RULES
from lwptv_lightning.search import sweep

pytestmark = [
    pytest.mark.usefixtures("handlers"),  # Lightning leaves that of Ctrl-C ignored
    pytest.mark.filterwarnings(
        "ignore:You defined a `validation_step` but have no `val_dataloader`",
        "ignore:You're using the WeightAveraging callback",
        "ignore:The verbose parameter|Checkpoint directory",
    ),
]
RECIPE, OTHER = MergeRecipe("ties", ratio=0.5), MergeRecipe("task_arithmetic", scale=0.25)
ERRORS = [ValueError, KeyboardInterrupt, MemoryError, SystemExit, torch.OutOfMemoryError, GeneratorExit, "SIGINT"]
ENDS = (ValueError, MemoryError, SystemExit, torch.OutOfMemoryError, GeneratorExit, Thrown)
"""What leaves a trainer, which makes a `SystemExit` of Ctrl-C."""


def raise_(error):
    if error == "SIGINT":
        os.kill(os.getpid(), signal.SIGINT)
    else:
        raise error


def make_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))


def data(seed, length=12, **options):
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.randn(length, 6, generator=generator), torch.randint(4, (length,), generator=generator)
    return DataLoader(TensorDataset(inputs, targets), batch_size=4, **options)


class Failing(TensorDataset):
    """Raises at a sample, once; also in the process of a worker."""

    def __init__(self, error, at=5):
        super().__init__(*data(6).dataset.tensors)
        self.error, self.at = error, at

    def __getitem__(self, index):
        if index == self.at:
            raise_(self.error)
        return super().__getitem__(index)


class Run(LightningModule):
    """A module of its own, which trains and is evaluated."""

    def __init__(self):
        super().__init__()
        self.net = make_net()
        self.states = []

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        self.note()
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def note(self):
        self.states.append(copied(self))

    on_after_backward = on_validation_start = on_train_end = on_fit_end = note


def copied(module):
    return copy.deepcopy(module.state_dict())


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.fixture(scope="module")
def vectors():
    state = make_net().state_dict()
    tuned = {
        task: {name: value.abs() if "var" in name else value for name, value in noise(state, seed, 0.5).items()}
        for seed, task in enumerate("ab", start=1)
    }
    return TaskVectors.open(state, tuned)


def online(vectors):
    loaders = {name: data(seed) for seed, name in enumerate(("id/mine", "id/a", "ood/far"), start=20)}
    return OnlineMerge(MergeModule(make_net(7), vectors, OTHER), loaders, task="mine", backbone="net")


def own_callbacks(vectors, stage):
    merging = [PruneAndMerge(vectors, RECIPE), RecalibrateBatchNorm(data(9))]
    return [*merging, PruneAndMerge(vectors, OTHER), online(vectors)] if stage == "fit" else merging


class Raises(Callback):
    """Raises in one hook, the first time outside a sanity check, or at a later one."""

    def __init__(self, hook, error, time=0):
        self.left = time
        setattr(self, hook, self._hook)
        self.error = error

    def _hook(self, trainer, *arguments, **options):
        if not trainer.sanity_checking and self.left is not None:
            self.left = self.left - 1 if self.left else None
            if self.left is None:
                raise_(self.error)


def seeded():
    torch.manual_seed(1), random.seed(1), np.random.seed(1)


def run(trainer, stage, module, loader=None):
    seeded()
    if stage == "fit":
        return trainer.fit(module, data(5, shuffle=True), loader or data(6))
    return getattr(trainer, stage)(module, loader or data(6), **({} if stage == "predict" else {"verbose": False}))


def figures(results):
    if isinstance(results, list):
        return [figures(each) for each in results]
    return results.tolist() if isinstance(results, torch.Tensor) else results


HOOKS = {
    stage: ["setup", *(f"on_{name}_{when}" for when in ("start", "epoch_start", "batch_start")), *later]
    for stage, name in (("validate", "validation"), ("test", "test"), ("predict", "predict"))
    for later in [[f"on_{name}_{when}" for when in ("batch_end", "epoch_end", "end")] + ["teardown"]]
}
EVALUATIONS = [(stage, hook, first) for stage, hooks in HOOKS.items() for hook in hooks for first in (True, False)] + [
    (stage, place, True) for stage in HOOKS for place in ("step", "loader", "worker", "merging", "copy")
]


def thrower(place, stage, error, first, callbacks):
    """The trainer's callbacks, a loader, and what surrounds the run, so that something is raised at a place."""
    if place.startswith(("on_", "setup", "teardown")):
        return [Raises(place, error), *callbacks] if first else [*callbacks, Raises(place, error)], None
    if place in ("loader", "worker"):
        # In a worker's process an interrupt is the worker's own.
        error = ValueError if place == "worker" else error
        return callbacks, DataLoader(Failing(error), batch_size=4, num_workers=int(place == "worker"))
    return callbacks, None


def raised_at(place, stage, module, error, monkeypatch):
    """Let something be raised inside a step, a merge or a copy, within the ``with`` block."""
    if place == "step":
        name = f"{ {'validate': 'validation', 'fit': 'training'}.get(stage, stage) }_step"
        monkeypatch.setattr(module, name, lambda *a, **o: raise_(error) or module.net(a[0][0]).sum())
    elif place == "merging":
        monkeypatch.setattr(RULES["ties"], "parts", lambda *a: raise_(error))
        monkeypatch.setattr(RULES["ties"], "combine", lambda *a: raise_(error))
    return copies(lambda own: raise_(error), at=11 if place == "copy" else -1)


def is_interrupted(trainer, stage, module, loader):
    """Run, and tell whether it was stopped; Ctrl-C may come too late for that."""
    try:
        run(trainer, stage, module, loader)
    except ENDS:
        return True
    except RuntimeError as error:
        if "ValueError" in str(error):  # a worker's
            return True
        raise
    return False


def test_evaluations(amount, row, vectors, make_trainer, monkeypatch):
    cases = EVALUATIONS[:: amount(7, 1)]
    undisturbed = {
        stage: figures(run(make_trainer(callbacks=own_callbacks(vectors, stage)), stage, Run())) for stage in HOOKS
    }
    raised = 0
    for number, (stage, place, first) in enumerate(cases):
        module, error = Run(), ERRORS[number % len(ERRORS)]
        module.net[2].eval()
        before, modes = copied(module), [part.training for part in module.modules()]
        callbacks, loader = thrower(place, stage, error, first, own_callbacks(vectors, stage))
        trainer = make_trainer(callbacks=callbacks)
        with monkeypatch.context() as patched, raised_at(place, stage, module, error, patched):
            raised += is_interrupted(trainer, stage, module, loader)
        assert same(module.state_dict(), before), (stage, place, first, error)
        assert [part.training for part in module.modules()] == modes, (stage, place, first, error)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        again = make_trainer(callbacks=own_callbacks(vectors, stage)) if number % 2 else trainer
        assert figures(run(again, stage, module)) == undisturbed[stage], (stage, place, first, error)
        assert same(module.state_dict(), before)
    assert raised >= 0.8 * len(cases)
    row(f"{raised} exceptions in validate, test and predict", "weights bit-exact, the next run's figures the same")


FITS = ["fit_start", "train_start", "train_epoch_start", "train_batch_start", "before_optimizer_step"]
FITS += ["train_batch_end", "before_zero_grad", "train_epoch_end", "train_end", "save_checkpoint", "fit_end"]
TRAINING = [
    *(("fit", f"on_{hook}", first) for hook in FITS for first in (True, False)),
    *(("fit", hook, first) for hook in HOOKS["validate"][1:-1] for first in (True, False)),
    *(("fit", place, True) for place in ("step", "loader", "worker", "merging", "copy")),
]


def averaging(averages):
    return [EMAWeightAveraging(decay=0.5)] if averages else []


@pytest.mark.parametrize("averages", [False, True])
def test_trainings(averages, amount, row, vectors, merged, make_trainer, monkeypatch, tmp_path):
    cases, raised = TRAINING[:: amount(13, 1)], 0
    undisturbed = Run()
    plain = make_trainer(max_epochs=2, callbacks=averaging(averages))
    run(plain, "fit", undisturbed)
    for number, (stage, place, first) in enumerate(cases):
        module, error = Run(), ERRORS[number % len(ERRORS)]
        mine = [*own_callbacks(vectors, stage), *averaging(averages), ModelCheckpoint(tmp_path / str(number))]
        callbacks, loader = thrower(place, stage, error, first, mine)
        trainer = make_trainer(max_epochs=2, callbacks=callbacks, enable_checkpointing=True)
        with monkeypatch.context() as patched, raised_at(place, stage, module, error, patched):
            raised += is_interrupted(trainer, stage, module, loader)
        require_own_weights(module, undisturbed, merged, trainer, (place, first, error))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        fresh = Run()
        run(make_trainer(max_epochs=2, callbacks=[*own_callbacks(vectors, stage), *averaging(averages)]), "fit", fresh)
        assert same(fresh.state_dict(), undisturbed.state_dict())
    assert raised >= 0.8 * len(cases)
    row(
        f"{raised} exceptions in fit{', with averaged weights' if averages else ''}",
        "weights bit-exactly those of the training, the next run the same",
    )


def require_own_weights(module, undisturbed, merged, trainer, case):
    """A module holds weights that the training had at some time, its own or, as Lightning leaves them, the average."""
    state, averages = (
        module.state_dict(),
        [
            each._average_model.module.state_dict()
            for each in trainer.callbacks
            if isinstance(each, EMAWeightAveraging) and each._average_model is not None
        ],
    )
    known = [Run().state_dict(), *undisturbed.states, undisturbed.state_dict(), *module.states]
    held = [state, *averages]
    assert any(same(each, state) for each in known) or averages, case
    for each in held:
        assert not any(torch.equal(each["net.0.weight"], weight) for weight in merged), case
    if averages:  # the two may have changed places as a whole, not in part
        assert any(same(each, state) for each in known) or any(same(each, averages[0]) for each in known), case


@pytest.fixture(scope="module")
def merged(vectors):
    """The weights of a layer as each recipe merges it, of the experts alone."""
    modules = [MergeModule(make_net(), vectors, recipe).merge_() for recipe in (RECIPE, OTHER)]
    return [module.model[0].weight.detach() for module in modules]


# A `MergeModule` holds all of one merge, and says which


def merge_module(vectors):
    return MergeModule(make_net(3), vectors, RECIPE, metric=MulticlassAccuracy(4, average="micro"))


def told(module):
    plan = None if module.plan is None else module.plan.mask.kept.tolist()
    return module.installed, plan, module.treatment, module.contents.to_dict()


def require_one_merge(module, models, case):
    """Weights and what is told of them are those of one model."""
    state = module.model.state_dict()
    held = [recipe for recipe, (weights, _) in models.items() if same(state, weights)]
    assert len(held) == 1, case
    assert told(module) == models[held[0]][1], (case, held[0])
    return held[0]


def merges(vectors):
    """What a module holds of each merge, and tells of it."""
    module, found = merge_module(vectors), {}
    found[None] = copied(module.model), told(module)
    for recipe in (RECIPE, OTHER):
        module.merge_(recipe=recipe)
        found[recipe] = copied(module.model), told(module)
    return found


def test_merge_modules(amount, row, vectors, make_trainer, monkeypatch):
    cases, raised, models = EVALUATIONS[:: amount(7, 1)], 0, merges(vectors)
    loaders = {"id/a": data(6), "ood/b": data(7)}
    undisturbed = {
        stage: figures(getattr(make_trainer(), stage)(merge_module(vectors), loaders, **quiet(stage)))
        for stage in HOOKS
    }
    for number, (stage, place, first) in enumerate(cases):
        module, error = merge_module(vectors), ERRORS[number % len(ERRORS)]
        callbacks, loader = thrower(place, stage, error, first, [])
        trainer = make_trainer(callbacks=callbacks)
        failing = loaders if loader is None else {**loaders, "id/a": loader}
        with monkeypatch.context() as patched, raised_at(place, stage, module, error, patched):
            raised += is_stopped(trainer, stage, module, failing)
        require_one_merge(module, models, (stage, place, first, error))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        assert figures(getattr(trainer, stage)(module, loaders, **quiet(stage))) == undisturbed[stage]
        require_one_merge(module, models, (stage, place, "again"))
    assert raised >= 0.7 * len(cases)
    row(f"{raised} exceptions in evaluations of a MergeModule", "all of one model, and what is told of it agrees")


def quiet(stage):
    return {} if stage == "predict" else {"verbose": False}


def is_stopped(trainer, stage, module, loaders):
    try:
        getattr(trainer, stage)(module, loaders, **quiet(stage))
    except (*ENDS, RuntimeError):
        return True
    return False


@pytest.mark.parametrize("error", ERRORS[:3])
def test_a_sweep_that_fails_leaves_the_module_as_it_was(error, vectors, make_trainer):
    module = merge_module(vectors).merge_()
    before, modes = copied(module), [part.training for part in module.model.modules()]
    trainer = make_trainer(callbacks=[Raises("on_validation_batch_end", error)])
    with pytest.raises(ENDS):
        sweep(trainer, module, {"a": OTHER}, {"id/a": data(6)})
    assert same(module.state_dict(), before)
    assert [part.training for part in module.model.modules()] == modes


PLACES = ("merging/install.py", "merging/undo.py", "evaluation/merging.py", "evaluation/module.py", "contents.py")


def test_merges_at_every_line(amount, row, vectors):
    models, module = merges(vectors), merge_module(vectors)
    moments, held = Moments(*PLACES), []
    for recipe in (RECIPE, OTHER):  # what is found once, such as layers
        module.merge_(recipe=recipe)
    with moments.watching():
        module.merge_(recipe=RECIPE)
    for moment in range(0, moments.seen, amount(29, 1)):
        module.merge_(recipe=OTHER)
        with pytest.raises(Thrown), moments.watching(moment, Thrown()):
            module.merge_(recipe=RECIPE)
        held.append(require_one_merge(module, models, moment))
        moments.error = None
    order = [recipe == RECIPE for recipe in held]
    assert order == sorted(order)
    assert set(held) == {RECIPE, OTHER} or len(held) < 100
    row(
        f"{len(held):,} exceptions, one at each line of an installation",
        "all of one model, and what is told of it agrees",
    )


SEEN = ("merging/install.py", "merging/undo.py", "evaluation/weights.py", "prune_and_merge.py", "online_merge.py")


def test_lines_of_callbacks(amount, row, vectors, make_trainer):
    module, moments = Run(), Moments(*SEEN, "recalibrate_batch_norm.py")
    before, modes = copied(module), [part.training for part in module.modules()]
    trainer = make_trainer(callbacks=own_callbacks(vectors, "validate"))
    with moments.watching():
        run(trainer, "validate", module)
    tried = list(range(0, moments.seen, max(1, moments.seen // amount(12, 400))))
    for moment in tried:
        trainer = make_trainer(callbacks=own_callbacks(vectors, "validate"))
        with pytest.raises(Thrown), moments.watching(moment, Thrown()):
            run(trainer, "validate", module)
        moments.error = None
        assert same(module.state_dict(), before), moment
        assert [part.training for part in module.modules()] == modes, moment
    row(f"{len(tried):,} exceptions at lines of callbacks that merge", "weights bit-exact")


@pytest.mark.parametrize("averages", [False, True])
def test_lines_of_callbacks_in_training(averages, amount, row, vectors, merged, make_trainer):
    moments, undisturbed = Moments(*SEEN, "recalibrate_batch_norm.py", "evaluation/lightning.py"), Run()
    run(make_trainer(max_epochs=2, callbacks=averaging(averages)), "fit", undisturbed)

    def fit(module, callbacks):
        trainer = make_trainer(max_epochs=2, callbacks=[*callbacks, *averaging(averages)])
        return trainer, lambda: run(trainer, "fit", module)

    _, start = fit(Run(), own_callbacks(vectors, "fit"))
    with moments.watching():
        start()
    tried = list(range(0, moments.seen, max(1, moments.seen // amount(4, 300))))
    for moment in tried:
        module = Run()
        trainer, start = fit(module, own_callbacks(vectors, "fit"))
        with pytest.raises(Thrown), moments.watching(moment, Thrown()):
            start()
        moments.error = None
        require_own_weights(module, undisturbed, merged, trainer, moment)
    row(
        f"{len(tried):,} exceptions at lines of callbacks in fit{', with averaged weights' if averages else ''}",
        "weights bit-exactly those of the training",
    )
