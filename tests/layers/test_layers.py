"""Layers and tracing of small hand-made modules, where the right answer can be read off the code."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import timm
import torch
from torch import Tensor, nn

from lwptv_lightning.layers import Layer, Layers, TracingError, layers_from_names, trace, trace_layers
from lwptv_lightning.registry import GRANULARITIES, UnknownNameError


class Residual(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Reversed(nn.Module):
    """Uses its modules in another order than it defines them, one not at all, and has tensors of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.token = nn.Parameter(torch.zeros(4))
        self.head = nn.Linear(4, 2)
        self.unused = nn.Linear(4, 4)
        self.stem = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x) + self.token - self.shift)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decode = nn.Linear(4, 6)
        self.embed = nn.Embedding(6, 4)
        self.decode.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.embed(x))


class Repeating(nn.Module):
    """One block that stands at three places."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Residual()] * 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Stage(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.downsample = nn.Linear(4, 4)
        self.blocks = nn.Sequential(*(Residual() for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Staged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.stages = nn.Sequential(Stage(2), Stage(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))


class Buffered(nn.Module):
    """Reads a persistent buffer through arithmetic, in a module without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((4,), 2.0))
        self.register_buffer("count", torch.zeros(4, dtype=torch.long))
        self.register_buffer("scratch", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean * 2 + self.scratch + self.count


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x) if x.sum() > 0 else x


class Optional(nn.Module):
    """Has arguments with defaults, of which one decides what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, twice: bool = True) -> Tensor:
        x = self.fc(x) if mask is None else self.fc(x * mask)
        return self.fc(x) if twice else x


class Caching(nn.Module):
    """Keeps a result in eval mode, as the attention biases of LeViT are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(4))
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and "bias" not in self.cache:
            self.cache["bias"] = self.bias * 2
        return x + self.cache["bias"]


def as_dict(layers: Layers) -> dict[str, tuple[str, ...]]:
    return {layer.name: layer.tensors for layer in layers}


# Order


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


# Ties


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


# Buffers


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


# Blocks


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


def test_classes_show_what_names_hide():
    class Other(Residual):
        pass

    model = nn.Sequential(Residual(), Other())
    assert trace_layers(model, "block").names == trace_layers(model).names
    assert layers_from_names(model.state_dict(), "block").names == ("0", "1")


# Fallback


def test_an_untraceable_model_falls_back_with_one_warning():
    with pytest.warns(
        UserWarning, match=r"cannot trace DataDependent: TraceError: .*named_modules\(\) order"
    ) as caught:
        layers = trace_layers(DataDependent())
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert layers.names == ("second", "first")


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


# The graph


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


# Names alone


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


# Layers


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


@pytest.mark.parametrize("names", [["a.w", "b.w", "a.w"], ["w", "w"]])
def test_a_name_given_twice_is_refused(names):
    with pytest.raises(ValueError, match=r"must be unique.*w"):
        layers_from_names(names)
