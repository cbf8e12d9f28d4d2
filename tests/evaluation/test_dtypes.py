import pytest
import torch
from _helpers.interrupts import Moments, Thrown
from lightning.pytorch import LightningModule
from torch import nn

from lwptv_lightning.evaluation import in_precision


@pytest.fixture
def module():
    module = LightningModule()
    module.net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    return module


def same(left, right):
    return all(value.dtype == right[name].dtype and torch.equal(value, right[name]) for name, value in left.items())


def test_a_module_has_the_trainers_precision_and_then_its_own_values(module, make_trainer):
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with in_precision(make_trainer(precision="bf16-true"), module):
        assert module.net[0].weight.dtype == torch.bfloat16
    assert same(module.state_dict(), before)


def test_what_changed_meanwhile_stays_in_its_own_dtype(module, make_trainer):
    with in_precision(make_trainer(precision="bf16-true"), module):
        nn.init.ones_(module.net[0].weight)
    assert same({"w": module.net[0].weight.detach()}, {"w": torch.ones(2, 2)})


@pytest.mark.usefixtures("handlers")
def test_whatever_is_raised_at_any_line_it_has_its_own_dtypes(module, make_trainer):
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer, moments = make_trainer(precision="bf16-true"), Moments("evaluation/dtypes.py", "plugins/precision/half.py")

    def convert():
        with in_precision(trainer, module):
            pass

    with moments.watching():
        convert()
    assert moments.seen > 20
    for moment in range(moments.seen):
        with pytest.raises(Thrown), moments.watching(moment, Thrown()):
            convert()
        moments.error = None
        assert same(module.state_dict(), before)
