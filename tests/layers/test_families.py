"""Tracing and listing the layers of timm's families, each at a size that takes no time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from torch import nn

from lwptv_lightning.layers import TracingError, layers_from_names, trace, trace_layers
from lwptv_lightning.registry import GRANULARITIES

CLASSES = 5
TINY_VIT = {"depth": 2, "embed_dim": 48, "num_heads": 2}
TINY_SWIN = {"img_size": 64, "embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2)}


@dataclass(frozen=True)
class Family:
    """A timm model, what is first and last in its forward pass, and options that make it small."""

    model: str
    first: str
    last: str
    size: int = 64
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(self.model, pretrained=False, num_classes=CLASSES, **self.options)


FAMILIES = {
    "beit": Family("beit_base_patch16_224", "patch_embed.proj", "head", 32, {"img_size": 32, **TINY_VIT}),
    "cait": Family("cait_xxs24_224", "patch_embed.proj", "head", 32, {"img_size": 32, "depth": 2}),
    "clip": Family("vit_base_patch32_clip_224", "patch_embed.proj", "head", 64, {"img_size": 64, **TINY_VIT}),
    "coatnet": Family("test_coatnet", "stem.conv1", "head.fc", 64, {"img_size": 64}),
    "convnext": Family("test_convnext", "stem.0", "head.fc"),
    "convnextv2": Family("test_convnext3", "stem.0", "head.fc"),
    "deit3": Family("deit3_small_patch16_224", "patch_embed.proj", "head", 32, {"img_size": 32, **TINY_VIT}),
    "densenet": Family("densenet121", "features.conv0", "classifier", 64, {"growth_rate": 4, "block_config": (2, 2)}),
    "dinov2": Family("vit_small_patch14_reg4_dinov2", "patch_embed.proj", "head", 28, {"img_size": 28, **TINY_VIT}),
    "dinov3": Family("vit_small_patch16_dinov3", "patch_embed.proj", "head", 32, {"img_size": 32, **TINY_VIT}),
    "efficientformer": Family("efficientformer_l1", "stem.conv1", "head_dist", 224),
    "efficientnet": Family("test_efficientnet", "conv_stem", "classifier"),
    "eva02": Family("eva02_tiny_patch14_224", "patch_embed.proj", "head", 28, {"img_size": 28, **TINY_VIT}),
    "hiera": Family(
        "hiera_tiny_224", "patch_embed.proj", "head.fc", 64, {"img_size": 64, "embed_dim": 32, "stages": (1, 1, 2, 1)}
    ),
    "levit": Family("levit_128s", "stem.conv1.linear", "head_dist.linear", 64, {"img_size": 64}),
    "maxvit": Family("test_maxvit", "stem.conv1", "head.fc", 64, {"img_size": 64}),
    "mixer": Family("mixer_s32_224", "stem.proj", "head", 64, {"img_size": 64}),
    "mobilenetv3": Family("mobilenetv3_small_050", "conv_stem", "classifier"),
    "mobilevit": Family("mobilevit_xxs", "stem.conv", "head.fc"),
    "naflexvit": Family("naflexvit_base_patch16_gap", "embeds", "head", 64, TINY_VIT),
    "nfnet": Family("test_nfnet", "stem.conv1", "head.fc"),
    "poolformer": Family("poolformer_s12", "stem.conv", "head.fc"),
    "pvt_v2": Family("pvt_v2_b0", "patch_embed.proj", "head", 64, {"depths": (1, 1, 2, 1)}),
    "regnet": Family("regnetx_002", "stem.conv", "head.fc"),
    "resnet": Family("resnet18", "conv1", "fc"),
    "siglip": Family("vit_base_patch16_siglip_224", "patch_embed.proj", "head", 32, {"img_size": 32, **TINY_VIT}),
    "swin": Family("swin_tiny_patch4_window7_224", "patch_embed.proj", "head.fc", 64, {"window_size": 2, **TINY_SWIN}),
    "swinv2": Family("swinv2_tiny_window8_256", "patch_embed.proj", "head.fc", 64, {"window_size": 4, **TINY_SWIN}),
    "vit": Family("vit_tiny_patch16_224", "patch_embed.proj", "head", 32, {"img_size": 32, **TINY_VIT}),
    "vit_relpos": Family("test_vit_relpos", "patch_embed.proj", "head", 160),
    "xcit": Family("xcit_nano_12_p16_224", "patch_embed.proj.0.0", "head", 32, {"img_size": 32, "depth": 2}),
}
# The number of dimensions of its input decides what this one executes.
UNTRACEABLE = Family("gemma4_vit_167m", "encoder.patch_embed", "head", 64, TINY_VIT)

# One block of each family whose blocks are worth a look: nested stages, blocks inside and outside of stages.
BLOCKS = {
    "vit": ("blocks.1", "norm"),
    "swin": ("layers.1.blocks.1", "layers.1"),  # the second holds the patch merging in front of the blocks
    "convnext": ("stages.1.blocks.1", "stages.1"),
    "resnet": ("layer3.1", "conv1"),
    "efficientnet": ("blocks.2", "conv_head"),  # a stage of one block
    "mobilenetv3": ("blocks.4.2", "bn1"),
    "mobilevit": ("stages.4.1.transformer.2", "stages.4"),  # the two children of stages.4 differ in class
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    if not timm.is_model(FAMILIES[request.param].model):
        pytest.skip(f"timm {timm.__version__} has no {FAMILIES[request.param].model}")
    return request.param


@pytest.fixture(scope="module")
def model(family: str) -> nn.Module:
    return FAMILIES[family].build()


def floating_names(model: nn.Module) -> list[str]:
    """The names to expect, found without the code under test."""
    persistent = model.state_dict().keys()
    buffers = [name for name, buffer in model.named_buffers(remove_duplicate=False) if buffer.is_floating_point()]
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return parameters + [name for name in buffers if name in persistent]


def test_the_graph_computes_the_models_output_and_leaves_the_model_alone(family, model):
    with torch.no_grad():
        for parameter in model.parameters():  # fresh layer scales and heads of 0 would hide most of the model
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, nn.Dropout | nn.Linear)).eval()
    flags = {name: module.training for name, module in model.named_modules()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}

    graph = trace(model)

    assert not frozen.training
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.eval()
    size = FAMILIES[family].size
    images = torch.rand(2, 3, size, size)
    with torch.inference_mode():
        expected, got = model(images), graph(images)
    assert expected.shape == (2, CLASSES)
    assert expected.std() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_floating_tensor_is_in_one_layer(model, granularity):
    layers = trace_layers(model, granularity)
    assert Counter(layers.tensors) == Counter(floating_names(model))
    assert layers.granularity == granularity


def test_layers_are_in_execution_order(family, model):
    names = trace_layers(model).names
    assert names[0] == FAMILIES[family].first
    assert names[-1] == FAMILIES[family].last


def test_names_alone_give_the_same_groups(model):
    # No model here ties weights, which is all that names cannot show at this granularity.
    assert groups(layers_from_names(floating_names(model))) == groups(trace_layers(model))


@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "mobilevit"])
def test_names_alone_give_the_same_blocks(name):
    model = FAMILIES[name].build()
    assert groups(layers_from_names(floating_names(model), "block")) == groups(trace_layers(model, "block"))


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_the_innermost_repeated_modules(name):
    layers = trace_layers(FAMILIES[name].build(), "block")
    for expected in BLOCKS[name]:
        layer = layers[layers.names.index(expected)]
        assert all(tensor.startswith(f"{expected}.") for tensor in layer.tensors)
        inner = [other for other in layers.names if other.startswith(f"{expected}.")]
        assert not any(tensor.startswith(f"{path}.") for tensor in layer.tensors for path in inner)
    assert len(layers) < len(trace_layers(FAMILIES[name].build()))


def test_an_untraceable_family_falls_back_to_definition_order():
    model = UNTRACEABLE.build()
    with pytest.raises(TracingError, match="Gemma4VitClassifier"):
        trace(model)
    with pytest.warns(UserWarning, match=r"cannot trace Gemma4VitClassifier.*named_modules\(\) order") as caught:
        layers = trace_layers(model)
    assert len(caught) == 1
    assert layers == layers_from_names(name for name in model.state_dict() if name in floating_names(model))
    assert (layers.names[0], layers.names[-1]) == (UNTRACEABLE.first, UNTRACEABLE.last)


def groups(layers):
    return {(layer.name, frozenset(layer.tensors)) for layer in layers}
