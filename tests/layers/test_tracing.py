from __future__ import annotations

import pickle

import pytest
import torch
from _helpers.modules import (
    Buffered,
    Caching,
    DataDependent,
    Optional,
    Staged,
)
from torch import Tensor, nn

from lwptv_lightning.layers import TracingError, trace, trace_layers


def test_trace_names_the_class_and_the_reason_and_restores_everything():
    model = DataDependent().train()
    model.first.eval()
    with pytest.raises(TracingError, match=r"DataDependent.*control flow") as caught:
        trace(model)
    assert isinstance(caught.value, ValueError)
    assert caught.value.__cause__ is not None
    assert [module.training for module in model.modules()] == [True, True, False]


def test_a_reason_without_words_is_no_second_error():
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError

    with pytest.raises(TracingError, match="RuntimeError: no reason given"):
        trace(Silent())


def test_default_arguments_are_fixed():
    model, x = Optional(), torch.rand(2, 4)
    torch.testing.assert_close(trace(model)(x), model(x))


def test_the_graph_is_in_eval_mode_and_shares_no_module():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    graph = trace(model)
    assert not any(module.training for module in graph.modules())
    assert all(module.training for module in model.modules())
    assert not set(graph.modules()) & set(model.modules())


def test_the_graph_shares_parameters_and_buffers():
    model = nn.Sequential(nn.Linear(4, 4), Buffered())
    graph = trace(model)
    assert all(parameter is graph.get_parameter(name) for name, parameter in model.named_parameters())
    with torch.no_grad():
        for tensor in (*model.parameters(), model[1].mean):
            tensor.fill_(3.0)
    x = torch.rand(2, 4)
    torch.testing.assert_close(graph(x), model(x))
    assert torch.equal(graph.get_buffer("1.mean"), model[1].mean)


def test_what_a_forward_pass_stores_is_neither_needed_nor_left_behind():
    model, x = Caching().eval(), torch.rand(4)
    trace(model)
    assert model.cache == {}
    expected = model(x)  # the stored tensor has a gradient function now, and cannot be copied
    torch.testing.assert_close(trace(model)(x), expected)
    assert list(model.cache) == ["bias"]


def test_a_graph_can_be_traced_and_pickled():
    graph = trace(Staged())
    assert trace_layers(graph) == trace_layers(Staged())
    assert trace_layers(graph, "block") == trace_layers(Staged(), "block")
    x = torch.rand(2, 4)
    torch.testing.assert_close(pickle.loads(pickle.dumps(graph))(x), graph(x))
