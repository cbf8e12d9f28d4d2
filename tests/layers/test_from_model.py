from __future__ import annotations

import dataclasses

import pytest
from _helpers.modules import (
    Buffered,
    DataDependent,
    Repeating,
    Residual,
    Reversed,
    Stage,
    Staged,
    Tied,
    as_dict,
)
from torch import Tensor, nn

from lwptv_lightning.layers import Layer, trace_layers
from lwptv_lightning.registry import GRANULARITIES


def test_order_is_that_of_use_and_unused_tensors_come_last():
    assert as_dict(trace_layers(Reversed())) == {
        "stem": ("stem.weight", "stem.bias"),
        "token": ("token",),
        "shift": ("shift",),
        "head": ("head.weight", "head.bias"),
        "unused": ("unused.weight", "unused.bias"),
    }
    assert trace_layers(Reversed()).names == ("stem", "token", "shift", "head", "unused")


def test_a_tensor_that_is_only_looked_at_is_not_used():
    class Peeking(Reversed):
        def forward(self, x: Tensor) -> Tensor:
            return x if self.shift is None else super().forward(x)

    assert trace_layers(Peeking()).names == trace_layers(Reversed()).names


def test_leaf_modules_expand_in_definition_order():
    attention = nn.MultiheadAttention(4, 2)

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 4)
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x)[0])

    assert as_dict(trace_layers(Attending())) == {
        "attention": ("attention.in_proj_weight", "attention.in_proj_bias"),
        "attention.out_proj": ("attention.out_proj.weight", "attention.out_proj.bias"),
        "head": ("head.weight", "head.bias"),
    }


def test_a_parameter_of_the_root_is_a_layer_at_every_granularity():
    for granularity in GRANULARITIES:
        assert Layer("token", ("token",)) in trace_layers(Reversed(), granularity)


def test_a_single_module_is_its_own_root():
    assert as_dict(trace_layers(nn.Linear(2, 2))) == {"weight": ("weight",), "bias": ("bias",)}


def test_a_module_without_tensors_has_no_layers():
    assert len(trace_layers(nn.Sequential(nn.ReLU()))) == 0


@pytest.mark.parametrize("granularity", ["module", "block"])
def test_tied_weights_belong_to_the_layer_that_uses_them_first(granularity):
    assert as_dict(trace_layers(Tied(), granularity)) == {
        "embed": ("embed.weight", "decode.weight"),
        "decode": ("decode.bias",),
    }


def test_tied_weights_are_one_layer_at_tensor_granularity():
    first, second = trace_layers(Tied(), "tensor")
    assert first == Layer("embed.weight", ("embed.weight", "decode.weight"))
    assert second == Layer("decode.bias", ("decode.bias",))


def test_a_module_used_at_several_places_is_one_layer_with_all_names():
    (layer,) = trace_layers(Repeating(), "block")
    assert layer.name == "blocks.0"
    assert set(layer.tensors) == set(Repeating().state_dict())
    assert trace_layers(Repeating()).names == ("blocks.0.norm", "blocks.0.mlp.0", "blocks.0.mlp.2")


def test_floating_persistent_buffers_follow_their_module():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    assert trace_layers(model)[1] == Layer("1", ("1.weight", "1.bias", "1.running_mean", "1.running_var"))


def test_a_module_with_buffers_only_is_a_layer():
    model = nn.Sequential(nn.BatchNorm1d(4, affine=False), Buffered(), nn.Linear(4, 4))
    assert as_dict(trace_layers(model)) == {
        "0": ("0.running_mean", "0.running_var"),
        "1": ("1.mean",),
        "2": ("2.weight", "2.bias"),
    }


def test_blocks_are_the_innermost_repeated_modules():
    layers = trace_layers(Staged(), "block")
    # The only block of the second stage is not repeated: its tensors belong to the stage.
    assert layers.names == ("stem", "stages.0", "stages.0.blocks.0", "stages.0.blocks.1", "stages.1")
    assert layers[1].tensors == ("stages.0.downsample.weight", "stages.0.downsample.bias")
    assert "stages.1.blocks.0.norm.weight" in layers[4].tensors


def test_a_sequential_mlp_is_no_block():
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
    assert trace_layers(model, "block") == dataclasses.replace(trace_layers(model), granularity="block")


def test_numbered_children_of_different_classes_are_no_blocks():
    model = nn.Sequential(Residual(), Stage(1))
    assert trace_layers(model, "block").names == trace_layers(model).names
    assert trace_layers(nn.Sequential(Residual(), Residual(), Stage(1)), "block").names == ("0", "1", "2")


def test_an_untraceable_model_falls_back_with_one_warning():
    with pytest.warns(
        UserWarning, match=r"cannot trace DataDependent: TraceError: .*named_modules\(\) order"
    ) as caught:
        layers = trace_layers(DataDependent())
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert layers.names == ("second", "first")
