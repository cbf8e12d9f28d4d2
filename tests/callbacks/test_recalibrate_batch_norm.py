import copy

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import MergeModule, MergeRecipe, PruneAndMerge, RecalibrateBatchNorm, TaskVectors

INPUTS = torch.randn(24, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1
LOADER = DataLoader(TensorDataset(INPUTS, torch.zeros(24).long()), batch_size=8)


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.9), nn.Linear(4, 2)).eval()


def measured(model):
    hidden = [model[0](INPUTS[start : start + 8]) for start in (0, 8, 16)]
    means = torch.stack([part.mean(0) for part in hidden]).mean(0)
    return means, torch.stack([part.var(0) for part in hidden]).mean(0)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_statistics_of_the_merged_model_are_measured(stage, make_trainer):
    module = MergeModule(make_model(), TaskVectors.open(make_model(1), {"a": make_model(2)}), MergeRecipe(scale=0.5))
    trainer = make_trainer(callbacks=[PruneAndMerge(), RecalibrateBatchNorm(LOADER)])
    getattr(trainer, stage)(module, {"id/a": LOADER} if stage != "predict" else LOADER)
    norm = module.model[1]
    mean, variance = measured(module.model)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert (norm.momentum, norm.num_batches_tracked.item()) == (0.3, 3)
    assert not any(part.training for part in module.model.modules())


class Foreign(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = make_model()
        self.seen = []

    def forward(self, x):
        return self.net(x)

    def validation_step(self, batch, batch_idx):
        self.seen.append(self.net[1].running_mean.clone())


def test_a_foreign_module_gets_its_statistics_back(make_trainer):
    module = Foreign()
    before = copy.deepcopy(module.state_dict())
    vectors = TaskVectors.open(make_model(), {"a": make_model(2)})
    trainer = make_trainer(callbacks=[PruneAndMerge(vectors), RecalibrateBatchNorm(LOADER, limit=2)])
    trainer.validate(module, LOADER, verbose=False)
    assert not torch.equal(module.seen[0], before["net.1.running_mean"])
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_module_without_batch_normalisation_is_not_run():
    RecalibrateBatchNorm(iter(())).recalibrate_(LightningModule())


def test_wrong_arguments():
    with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
        RecalibrateBatchNorm(LOADER, limit=0)
    with pytest.raises(ValueError, match="no batches to measure"):
        RecalibrateBatchNorm([]).recalibrate_(Foreign())
