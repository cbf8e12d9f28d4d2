from __future__ import annotations

import pytest
import timm
from _helpers.modules import (
    Residual,
)
from torch import nn

from lwptv_lightning.layers import layers_from_names, trace_layers


def test_classes_show_what_names_hide():
    class Other(Residual):
        pass

    model = nn.Sequential(Residual(), Other())
    assert trace_layers(model, "block").names == trace_layers(model).names
    assert layers_from_names(model.state_dict(), "block").names == ("0", "1")


def test_names_of_a_vit():
    model = timm.create_model("test_vit", pretrained=False)
    names = [name for name, _ in model.named_parameters()]
    traced = trace_layers(model)
    layers = layers_from_names(names)
    assert layers.tensors == tuple(names)
    assert {frozenset(layer.tensors) for layer in layers} == {frozenset(layer.tensors) for layer in traced}
    blocks = layers_from_names(names, "block").names
    assert blocks == ("cls_token", "pos_embed", "patch_embed.proj", *(f"blocks.{i}" for i in range(6)), "norm", "head")
    assert layers_from_names(names, "tensor").names == tuple(names)


def test_blocks_from_names_need_two_numbers_and_a_nested_name_in_common():
    names = ["mlp.0.weight", "mlp.2.weight", "one.0.fc.weight", "two.0.fc.weight", "two.1.conv.weight"]
    assert layers_from_names(names, "block").names == ("mlp.0", "mlp.2", "one.0.fc", "two.0.fc", "two.1.conv")
    assert layers_from_names(["two.0.fc.weight", "two.7.fc.weight"], "block").names == ("two.0", "two.7")
    assert layers_from_names(["0.fc.weight", "1.fc.weight"], "block").names == ("0", "1")


def test_names_may_come_from_an_iterator():
    assert layers_from_names(iter(["a.0.b.w", "a.1.b.w"]), "block").names == ("a.0", "a.1")


@pytest.mark.parametrize("names", [["a.w", "b.w", "a.w"], ["w", "w"]])
def test_a_name_given_twice_is_refused(names):
    with pytest.raises(ValueError, match=r"must be unique.*w"):
        layers_from_names(names)
