import pytest
import timm
import torch
from _helpers.modules import Repeating, Tied
from torch import nn

from lwptv_lightning.functional import Replaceable, call_with


def tensors_of(module):
    return {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()}


@pytest.mark.parametrize("give_all", [True, False], ids=["under all names", "under one"])
@pytest.mark.parametrize(("make", "inputs"), [(Repeating, torch.randn(2, 4)), (Tied, torch.arange(6))])
def test_a_tensor_at_several_places_is_replaced_at_all_and_comes_back(make, inputs, give_all):
    torch.manual_seed(0)
    module, other = make(), make()
    before = tensors_of(module)
    names = module.state_dict() if give_all else dict(module.named_parameters())
    given = {name: other.state_dict()[name].clone() for name in names}
    for _ in range(2):
        assert torch.equal(call_with(module, given, inputs), other(inputs))
        assert tensors_of(module) == before
        assert all(isinstance(tensor, nn.Parameter) for tensor in module.state_dict(keep_vars=True).values())


def test_buffers_are_replaced_and_what_is_not_given_stays():
    norm = nn.BatchNorm1d(2).eval()
    found = call_with(norm, {"running_mean": torch.tensor([1.0, 2.0])}, torch.tensor([[1.0, 2.0]]))
    assert found.tolist() == [[0.0, 0.0]]
    assert norm.running_mean.tolist() == [0.0, 0.0]
    with pytest.raises(KeyError, match="mean"):
        call_with(norm, {"mean": torch.zeros(2)}, torch.zeros(1, 2))


def test_what_was_computed_of_other_tensors_is_forgotten():
    small = {"img_size": 64, "embed_dim": [16, 16, 16], "depth": [1, 1, 1], "num_heads": [1, 1, 1]}
    model, other = (timm.create_model("levit_128s", num_classes=3, **small).eval() for _ in range(2))
    images, biases = torch.randn(2, 3, 64, 64), [key for key, _ in model.named_parameters() if "biases" in key]
    for seed, each in enumerate((model, other)):
        for key in biases:
            torch.nn.init.normal_(each.get_parameter(key), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        own, expected = model(images), other(images)
    given = {key: tensor.detach().clone().requires_grad_() for key, tensor in other.named_parameters()}
    given |= dict(other.named_buffers())
    for _ in range(2):
        found = call_with(model, given, images)
        torch.testing.assert_close(found, expected.clone())
        assert any(each.any() for each in torch.autograd.grad(found.sum(), [given[key] for key in biases]))
    torch.testing.assert_close(model(images), own.clone())
    assert not any(part.training for part in model.modules())


def test_a_recurrent_layer_is_called_with_what_is_given():
    torch.manual_seed(0)
    layer, other, inputs = nn.LSTM(2, 3), nn.LSTM(2, 3), torch.randn(4, 1, 2)
    own = layer(inputs)[0]
    given = {name: tensor.detach().clone().requires_grad_() for name, tensor in other.named_parameters()}
    found = call_with(layer, given, inputs)[0]
    assert torch.equal(found, other(inputs)[0])
    assert all(each.any() for each in torch.autograd.grad(found.sum(), list(given.values())))
    assert torch.equal(layer(inputs)[0], own)


def test_one_module_is_called_with_several_others_in_turn():
    torch.manual_seed(0)
    model, others, inputs = nn.Linear(2, 2), [nn.Linear(2, 2) for _ in range(3)], torch.randn(4, 2)
    replaceable = Replaceable(model)
    calls = [replaceable.with_(dict(other.named_parameters())) for other in others]
    for _ in range(2):
        for call, other in zip(calls, others, strict=True):
            assert torch.equal(call(inputs), other(inputs))
