import torch
from _helpers.gated import gated_module, images
from torch import nn

from lwptv_lightning.learning.substituted import Substituted, evaluating


def test_it_runs_with_other_tensors_and_gradients_reach_them():
    module = gated_module()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    weight = torch.zeros(12, 96, requires_grad=True)
    substituted = Substituted(module, torch.float32)
    with evaluating(module):
        logits = substituted.run(substituted.tensors({"fc.weight": weight}), images(0, 2), "a")
    assert torch.equal(logits[0], logits[1])  # the features are the bias
    logits.sum().backward()
    assert weight.grad.any()
    assert not any(parameter.grad is not None for parameter in module.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_floating_tensors_are_of_its_dtype():
    tensors = Substituted(gated_module(), torch.float64).tensors({})
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float64, torch.int64}


def test_modes_come_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    model[1].eval()
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == [True, True, False, False]
