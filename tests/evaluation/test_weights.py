import copy

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import nn

from lwptv_lightning.callbacks import OnlineMerge, PruneAndMerge, RecalibrateBatchNorm
from lwptv_lightning.evaluation import MergingCallback, WeightsOwner, callbacks_of, owner_of
from lwptv_lightning.merging import install_


class Other(Callback):
    pass


def names(trainer):
    return [type(callback).__name__ for callback in callbacks_of(trainer)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["PruneAndMerge", "Other", "EMA"], ["Other", "EMA", "PruneAndMerge"]),
        (["Online", "Recalibrate", "Other", "Merging"], ["Other", "Merging", "Recalibrate", "Online"]),
        (["Online", "SWA", "Recalibrate", "Other"], ["SWA", "Recalibrate", "Online", "Other"]),
        (["Other", "PruneAndMerge", "Other"], ["Other", "PruneAndMerge", "Other"]),
        (["EMA", "Other", "PruneAndMerge", "Recalibrate"], ["EMA", "Other", "PruneAndMerge", "Recalibrate"]),
    ],
)
def test_callbacks_are_brought_in_order_and_others_stay(given, expected, make_trainer):
    made = {
        "PruneAndMerge": PruneAndMerge(),
        "Merging": MergingCallback(),
        "EMA": EMAWeightAveraging(),
        "SWA": StochasticWeightAveraging(0.1),
        "Recalibrate": RecalibrateBatchNorm([]),
        "Online": object.__new__(OnlineMerge),
        "Other": Other(),
    }
    trainer = make_trainer(callbacks=[made[name] for name in given], enable_checkpointing=True)
    owner = owner_of(trainer)
    callbacks = callbacks_of(trainer)
    assert callbacks == [owner, *(made[name] for name in expected), callbacks[-1]]
    assert isinstance(callbacks[-1], ModelCheckpoint)
    assert owner_of(trainer) is owner
    assert callbacks_of(trainer) == callbacks


def test_what_is_held_is_restored_in_reverse_order(make_trainer):
    module = LightningModule()
    module.net = nn.Linear(1, 1)
    trainer, owner = make_trainer(), WeightsOwner()
    own = copy.deepcopy(module.state_dict())
    for value in (1.0, 2.0):
        with owner.holding(module.net, ["weight"]):
            install_(module.net, {"weight": torch.full((1, 1), value)})
    assert owner.held == [(module.net, ("weight",))] * 2
    with owner.own_weights(trainer, module):
        assert torch.equal(module.net.weight, own["net.weight"])
    assert module.net.weight.item() == 2.0
    owner.on_validation_end(trainer, module)
    assert torch.equal(module.net.weight, own["net.weight"])
    assert not owner.held


def test_what_is_not_to_be_restored_stays(make_trainer):
    module = LightningModule()
    module.net = nn.Linear(1, 1)
    trainer, owner = make_trainer(), WeightsOwner()
    with owner.holding(module.net, ["weight"], restores=False):
        install_(module.net, {"weight": torch.ones(1, 1)})
    with owner.own_weights(trainer, module):
        assert module.net.weight.item() == 1.0
    owner.on_test_end(trainer, module)
    assert module.net.weight.item() == 1.0
