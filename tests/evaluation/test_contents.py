import pytest
import torch
from torch import nn

from lwptv_lightning.checkpoints import Provenance, TensorHeader
from lwptv_lightning.evaluation.contents import Contents


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def contents_of(model):
    return Contents.of(model, TensorHeader.of_all(model.state_dict()))


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda model: None, []),
        (lambda model: model.double(), []),
        (lambda model: model.bfloat16(), ["0.weight", "0.bias"]),
        (lambda model: model[0].weight.data.add_(1e-7), ["0.weight"]),
        (lambda model: model[0].weight.data.copy_(model[0].weight.data.flip(1)), ["0.weight"]),
        (lambda model: model[0].bias.data.neg_(), ["0.bias"]),
        (lambda model: model[1](torch.randn(5, 4)), ["1.running_mean", "1.running_var", "1.num_batches_tracked"]),
        (lambda model: setattr(model[0], "bias", nn.Parameter(torch.zeros(4))), ["0.bias"]),
    ],
)
def test_what_has_changed_is_named(change, changed, model):
    contents = contents_of(model)
    change(model)
    assert contents.changed_in(model) == changed
    assert contents.describe(Provenance(kind="merged"), model).changed == changed
    assert Contents(**contents.to_dict()) == contents


def test_a_narrower_dtype_is_told_and_the_bases_is_stored(model):
    contents = contents_of(model)
    model.half()
    assert contents.describe(Provenance(), model).evaluated_in == ["float16"]
    stored = contents.stored(model, aside=("0.bias",))
    assert {value.dtype for name, value in stored.items() if "tracked" not in name} == {torch.float32}
    assert stored.keys() == model.state_dict().keys() - {"0.bias"}
    assert contents.describe(Provenance(), model.double()).evaluated_in == []


def test_nothing_is_known_of_what_was_never_merged(model):
    assert Contents().changed_in(model) == []
    assert Contents().describe(Provenance(), model) == Provenance()
