"""Every callback on every kind of model: what it is for, and that a run goes on, to the bit, as without it.

A new callback is one function in `WHILE_TRAINING` or `WHILE_VALIDATING`; one in neither fails the last test.
"""

import pytest
import torch
from _helpers.models import MODELS, make_model, vectors_of_model
from _helpers.states import as_bytes
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors, callbacks, merge, open_checkpoint, trace_layers
from lwptv_lightning.callbacks import (
    CollectDataStatistics,
    MergeReport,
    OnlineMerge,
    PruneAndMerge,
    RecalibrateBatchNorm,
    TaskVectorCheckpoint,
)
from lwptv_lightning.rules import RULES

RECIPE = MergeRecipe("ties", ratio=0.5)
LOADERS = ("id/a", "id/b")


def loader(seed=0):
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(images, torch.arange(8) % 4), batch_size=4)


def loaders():
    return {name: loader(seed) for seed, name in enumerate(LOADERS)}


class Training(LightningModule):
    """A model in training."""

    def __init__(self, kind):
        super().__init__()
        self.net = make_model(kind).train()

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("loss", torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(kind, make_trainer, *given):
    torch.manual_seed(0)
    module = Training(kind)
    trainer = make_trainer(max_epochs=2, callbacks=list(given))
    trainer.fit(module, loader(seed=1), loader(seed=2))
    return trainer, {name: value.clone() for name, value in module.net.state_dict().items()}


def by_prune_and_merge(kind, folder):
    callback = PruneAndMerge(vectors_of_model(make_model(kind)), RECIPE, backbone="net")

    def examine(trainer, trained):
        expected = merge(callback.vectors, RECIPE, trace_layers(make_model(kind)))
        model = make_model(kind)
        model.load_state_dict(expected)
        (found,) = trainer.validate(Training(kind), loader(seed=2), verbose=False)
        inputs, labels = (torch.cat(parts) for parts in zip(*loader(seed=2), strict=True))
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        assert found["loss"] == pytest.approx(float(loss), rel=1e-4)

    return callback, examine


def by_online_merge(kind, folder):
    experts = vectors_of_model(make_model(kind))
    callback = OnlineMerge(MergeModule(make_model(kind), experts, RECIPE), loaders(), task="mine", backbone="net")

    def examine(trainer, trained):
        fresh = MergeModule(make_model(kind), experts.with_task("mine", trained), RECIPE)
        expected = trainer.validate(fresh, loaders(), verbose=False)
        figures = {name: value for each in expected for name, value in each.items()}
        found = {name.removeprefix("merged/"): float(value) for name, value in logged.items()}
        assert figures == pytest.approx({name: value for name, value in found.items() if name in figures})
        assert set(figures) == {*LOADERS, "id/avg"}

    logged = {}

    def keep(trainer, module):
        logged.update({k: v for k, v in trainer.callback_metrics.items() if k.startswith("merged/")})

    callback.on_fit_end = keep
    return callback, examine


def by_task_vector_checkpoint(kind, folder):
    callback = TaskVectorCheckpoint(folder / "stored", "mine", backbone="net")

    def examine(trainer, trained):
        vectors = TaskVectors.open(folder / "stored" / "base.safetensors", {"mine": folder / "stored"})
        start = make_model(kind).state_dict()
        for name in vectors.names + vectors.averaged:
            torch.testing.assert_close(vectors.stack(name)[0], trained[name] - start[name])
        merged = merge(vectors, MergeRecipe(scale=1.0))
        for name in vectors.names:
            torch.testing.assert_close(merged[name], trained[name])

    return callback, examine


def by_recalibration(kind, folder):
    return RecalibrateBatchNorm(loader(seed=3)), lambda trainer, trained: None


WHILE_TRAINING = {
    PruneAndMerge: by_prune_and_merge,
    OnlineMerge: by_online_merge,
    TaskVectorCheckpoint: by_task_vector_checkpoint,
    RecalibrateBatchNorm: by_recalibration,
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("callback", WHILE_TRAINING, ids=lambda callback: callback.__name__)
def test_a_training_run_is_the_one_without_it(callback, kind, make_trainer, tmp_path):
    _, expected = train(kind, make_trainer)
    made, examine = WHILE_TRAINING[callback](kind, tmp_path)
    trainer, found = train(kind, make_trainer, made)
    assert [name for name in expected if as_bytes(found[name]) != as_bytes(expected[name])] == []
    assert any(as_bytes(found[name]) != as_bytes(value) for name, value in make_model(kind).state_dict().items())
    examine(trainer, found)


def validate(kind, make_trainer, *given, data=None, recipe=RECIPE):
    model = make_model(kind)
    module = MergeModule(model, vectors_of_model(model), recipe, **({} if data is None else {"data": data}))
    figures = make_trainer(callbacks=list(given)).validate(module, loaders(), verbose=False)
    return module, {name: value for each in figures for name, value in each.items()}


def of_data_statistics(needed):
    def examine(kind, make_trainer, folder):
        callback = CollectDataStatistics(needed, file=folder / "data.safetensors")
        module, _ = validate(kind, make_trainer, callback)
        fresh = make_model(kind).state_dict()
        assert [name for name in fresh if as_bytes(module.model.state_dict()[name]) != as_bytes(fresh[name])] == []
        (rule,) = (name for name in RULES if RULES[name].needs == needed)
        merged, _ = validate(kind, make_trainer, data=callback.statistics, recipe=MergeRecipe(rule))
        average, found = merge(merged.vectors, "simple_average"), merged.model.state_dict()
        changed = [name for name in merged.vectors.names if as_bytes(found[name]) != as_bytes(average[name])]
        # A ResNet's only linear layer is its classifier.
        collected = {name for tensors in callback.statistics.values() for name in tensors}
        assert bool(changed) == bool(collected & {*merged.vectors.names})
        assert changed or (needed, kind) == ("gram", "own classifiers")
        assert all(torch.isfinite(value).all() for value in found.values())

    return examine


def of_prune_and_merge(kind, make_trainer, folder):
    module, figures = validate(kind, make_trainer, PruneAndMerge(recipe=MergeRecipe("task_arithmetic", scale=0.1)))
    expected, expected_figures = validate(kind, make_trainer, recipe=MergeRecipe("task_arithmetic", scale=0.1))
    found = module.model.state_dict()
    assert [n for n, v in expected.model.state_dict().items() if as_bytes(found[n]) != as_bytes(v)] == []
    assert figures == expected_figures


def of_recalibration(kind, make_trainer, folder):
    module, _ = validate(kind, make_trainer, RecalibrateBatchNorm(loader(seed=3)))
    plain, _ = validate(kind, make_trainer)
    found, expected = module.model.state_dict(), plain.model.state_dict()
    changed = {name for name in expected if as_bytes(found[name]) != as_bytes(expected[name])}
    assert {name.rpartition(".")[2] for name in changed} <= {"running_mean", "running_var", "num_batches_tracked"}
    assert bool(changed) == any("running_var" in name for name in expected)
    saved = open_checkpoint(module.save_merged(folder / "merged.safetensors"))
    assert [name for name in saved.names if as_bytes(saved.read(name)) != as_bytes(found[name])] == []
    # The base's classifier is no task's.
    assert {*found} - {*saved.names} == ({"fc.weight", "fc.bias"} if kind == "own classifiers" else set())


def of_report(kind, make_trainer, folder):
    module, figures = validate(kind, make_trainer, MergeReport(folder / "report"))
    _, expected = validate(kind, make_trainer)
    assert figures == expected
    assert module.plan is not None
    assert any((folder / "report").iterdir())


WHILE_VALIDATING = {
    "Fisher information": (CollectDataStatistics, of_data_statistics("fisher")),
    "Gram matrices": (CollectDataStatistics, of_data_statistics("gram")),
    "another recipe": (PruneAndMerge, of_prune_and_merge),
    "recalibration": (RecalibrateBatchNorm, of_recalibration),
    "report": (MergeReport, of_report),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("what", WHILE_VALIDATING)
def test_a_merge_module_is_validated_with_it(what, kind, make_trainer, tmp_path):
    WHILE_VALIDATING[what][1](kind, make_trainer, tmp_path)


def test_every_callback_is_tested_here():
    tested = {*WHILE_TRAINING, *(callback for callback, _ in WHILE_VALIDATING.values())}
    public = {getattr(callbacks, name) for name in callbacks.__all__ if name != "AdaMergingModule"}
    assert public <= tested
