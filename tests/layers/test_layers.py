"""Layers of small hand-made modules, where the right answer can be read off the code."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
from _helpers.modules import (
    Staged,
    as_dict,
)
from torch import nn

from lwptv_lightning.layers import Layers, layers_from_names, trace_layers
from lwptv_lightning.registry import UnknownNameError


@pytest.fixture
def layers() -> Layers:
    return trace_layers(Staged())


def test_layers_are_an_immutable_sequence(layers):
    assert list(layers) == [layers[i] for i in range(len(layers))]
    assert layers[-1] in layers
    assert layers[:2] == Layers(layers.layers[:2], "module")
    assert layers == trace_layers(Staged())
    assert layers != trace_layers(Staged(), "block")
    assert hash(layers) == hash(trace_layers(Staged()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        layers.granularity = "block"
    with pytest.raises(TypeError):
        layers[0] = layers[1]


def test_index_of_finds_the_layer_of_each_tensor(layers):
    for index, layer in enumerate(layers):
        assert {layers.index_of(tensor) for tensor in layer.tensors} == {index}


def test_index_of_suggests_the_nearest_tensor(layers):
    with pytest.raises(KeyError, match=r"'stem.wieght'.*Did you mean 'stem.weight'\?"):
        layers.index_of("stem.wieght")


def test_restrict_keeps_order_and_drops_what_is_empty(layers):
    kept = layers.restrict({"stages.1.downsample.bias", "stem.bias", "stem.weight"})
    assert as_dict(kept) == {"stem": ("stem.weight", "stem.bias"), "stages.1.downsample": ("stages.1.downsample.bias",)}
    assert kept.granularity == layers.granularity
    assert layers.restrict(layers.tensors) == layers
    assert len(layers.restrict([])) == 0


def test_restrict_refuses_unknown_tensors(layers):
    with pytest.raises(KeyError, match=r"'stem.biass'.*Did you mean 'stem.bias'\?"):
        layers.restrict(["stem.biass"])


def test_layers_survive_pickling(layers):
    layers.index_of("stem.weight")  # fills the look-up table
    copied = pickle.loads(pickle.dumps(layers))
    assert copied == layers
    assert copied.index_of("stages.1.downsample.bias") == layers.index_of("stages.1.downsample.bias")


@pytest.mark.parametrize(
    "make",
    [
        lambda granularity: trace_layers(nn.Linear(2, 2), granularity),
        lambda granularity: layers_from_names(["weight"], granularity),
        lambda granularity: Layers((), granularity),
    ],
)
def test_an_unknown_granularity_is_named_with_the_nearest(make):
    with pytest.raises(UnknownNameError, match=r"granularity 'modul'\. Did you mean 'module'\?.*block, module, tensor"):
        make("modul")
