import copy

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors, merge
from lwptv_lightning.evaluation import MergingCallback, callbacks_of, merge_for_


@pytest.fixture
def module(fine_tuned):
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    return MergeModule(model, TaskVectors.open(copy.deepcopy(model), {"a": fine_tuned(model.state_dict(), 1)}))


@pytest.fixture
def loaders():
    return {"id/a": DataLoader(TensorDataset(torch.randn(5, 6), torch.zeros(5).long()), batch_size=2)}


def is_merged(module):
    merged = merge(module.vectors, module.recipe)
    return all(torch.equal(tensor, merged[name]) for name, tensor in module.model.state_dict().items())


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_module_brings_it_and_is_merged(stage, module, loaders, make_trainer):
    trainer = make_trainer()
    assert not is_merged(module)
    getattr(trainer, stage)(module, loaders)
    assert is_merged(module)
    assert [type(own) for own in callbacks_of(trainer) if isinstance(own, MergingCallback)] == [MergingCallback]
    getattr(trainer, stage)(module, loaders)
    assert sum(isinstance(own, MergingCallback) for own in callbacks_of(trainer)) == 1


def test_it_leaves_other_modules_alone(loaders, make_trainer):
    class Foreign(LightningModule):
        def validation_step(self, batch, batch_idx):
            self.log("x", batch[0].mean())

        test_step = predict_step = validation_step

    trainer, foreign = make_trainer(callbacks=[MergingCallback()]), Foreign()
    assert trainer.validate(foreign, loaders["id/a"], verbose=False)


def test_a_callback_that_says_it_installs_weights_takes_its_place(module, loaders, make_trainer):
    class Installing(Callback):
        installs_weights = True

        def on_validation_start(self, trainer, pl_module):
            merge_for_(trainer, pl_module, "validate", recipe=MergeRecipe(scale=0.0))

    trainer = make_trainer(callbacks=[Installing()])
    trainer.validate(module, loaders, verbose=False)
    assert torch.equal(module.model.weight, module.vectors.base("weight"))
    assert not any(isinstance(own, MergingCallback) for own in callbacks_of(trainer))
