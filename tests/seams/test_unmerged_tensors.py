"""What is excluded from merging, or cannot be merged, is the base's everywhere.

The models here are given with NaN in all tensors, so that what stays of them shows.
"""

import copy

import pytest
import torch
from _helpers.models import fine_tuned_model, make_model
from _helpers.states import as_bytes
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import (
    AdaMergingModule,
    CollectDataStatistics,
    MergeModule,
    MergeRecipe,
    OnlineMerge,
    TaskVectors,
    merge,
    merge_transform,
    open_checkpoint,
    save_merged,
)
from lwptv_lightning.search import sweep

EXCLUDED = {
    "nothing": (),
    "the classifier": ("fc.*",),
    "a normalisation": ("bn1.*",),
    "running statistics": ("*running*",),
    "a convolution": ("conv2.*",),
}


def poisoned(model):
    model = copy.deepcopy(model)
    for tensor in model.state_dict().values():
        tensor.fill_(torch.nan if tensor.is_floating_point() else 77)
    return model


@pytest.fixture(scope="module")
def tuned():
    model = make_model("ResNet")
    return model, {task: fine_tuned_model(model, seed) for seed, task in enumerate("ab", start=1)}


@pytest.fixture(params=EXCLUDED)
def case(request, tuned):
    """Task vectors, and a poisoned model for them."""
    model, experts = tuned
    return TaskVectors.open(model, experts, exclude=EXCLUDED[request.param]), poisoned(model)


@pytest.fixture
def loaders():
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, torch.tensor([0, 1, 2, 3]))
    return {f"id/{task}": DataLoader(data, batch_size=2) for task in "ab"}


def differing(found, expected):
    return [name for name in expected if as_bytes(found[name]) != as_bytes(expected[name])]


def test_the_merged_model_has_the_bases(case, tmp_path):
    vectors, model = case
    expected = merge(vectors, "task_arithmetic")
    unmerged = set(expected) - set(vectors.names) - set(vectors.averaged)
    assert "bn1.num_batches_tracked" in unmerged
    assert differing(expected, {name: vectors.base(name) for name in unmerged}) == []
    saved = open_checkpoint(save_merged(vectors, "task_arithmetic", tmp_path / "merged.safetensors"))
    assert differing({name: saved.read(name) for name in saved.names}, expected) == []
    assert differing(merge_transform(model, vectors, MergeRecipe()).state_dict(), expected) == []
    assert differing(MergeModule(model, vectors).merge_().model.state_dict(), expected) == []


def test_learnt_coefficients_see_the_bases(case, loaders, make_trainer):
    vectors, model = case
    learning = AdaMergingModule(MergeModule(model, vectors), lr=0.1)
    make_trainer(max_epochs=1).fit(learning, loaders)
    assert torch.isfinite(learning.coefficients).all()
    expected = merge(vectors, learning.recipe())
    for name, value in learning.merged().items():
        torch.testing.assert_close(value.detach(), expected[name])


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_data_statistics_are_of_models_with_the_bases(kind, case, loaders, make_trainer):
    vectors, model = case
    collected = []
    for architecture in (model, make_model("ResNet")):
        callback = CollectDataStatistics(kind)
        make_trainer(callbacks=[callback]).validate(MergeModule(architecture, vectors), loaders, verbose=False)
        collected.append(callback.statistics)
    found, expected = collected
    for task, tensors in expected.items():
        assert tensors
        assert differing(found[task], tensors) == []
        assert all(torch.isfinite(value).all() for value in tensors.values())


def test_a_sweep_evaluates_models_with_the_bases(case, loaders, make_trainer):
    vectors, model = case
    candidates = {"one": MergeRecipe(scale=0.5), "base": MergeRecipe(ratio=1.0)}
    results = [
        sweep(make_trainer(), MergeModule(architecture, vectors), candidates, loaders)
        for architecture in (model, make_model("ResNet"))
    ]
    for loader, outcomes in results[0].outcomes.items():
        assert torch.equal(outcomes, results[1].outcomes[loader])


class Training(LightningModule):
    """A model in training."""

    def __init__(self):
        super().__init__()
        self.net = make_model("ResNet").train()

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_validation_while_training_sees_the_bases(case, loaders, make_trainer):
    vectors, model = case
    found = []
    for architecture in (model, make_model("ResNet")):
        module = MergeModule(architecture, vectors)
        callback = OnlineMerge(module, loaders, task="mine", backbone="net")
        trainer = make_trainer(max_epochs=1, callbacks=[callback])
        trainer.fit(Training(), loaders["id/a"])
        found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        unmerged = set(vectors.headers) - set(vectors.names) - set(vectors.averaged)
        assert differing(module.model.state_dict(), {name: vectors.base(name) for name in unmerged}) == []
    assert found[0] == found[1]
    assert set(found[0]) >= {"merged/id/a", "merged/id/b", "merged/id/avg"}
