import timm
import torch
from torch import fx

from lwptv_lightning.zoo import create_model


def test_model_is_within_its_budget():
    model = create_model()
    assert sum(parameter.numel() for parameter in model.parameters()) <= 1_500_000
    assert not list(model.buffers())
    assert sum(bool(list(module.parameters(recurse=False))) for module in model.modules()) >= 20


def test_model_can_be_traced():
    tracer = fx.Tracer(autowrap_functions=tuple(timm.layers.get_notrace_functions()))
    model = create_model().eval()
    traced = fx.GraphModule(model, tracer.trace(model))
    images = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(traced(images), model(images))
