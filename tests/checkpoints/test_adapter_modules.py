import pytest
import torch
from torch import nn

from lwptv_lightning.checkpoints import AdapterLayout, TensorHeader


def layout_of(model):
    return AdapterLayout.of_model(TensorHeader.of_all(model.state_dict()), model)


def by_names(**shapes):
    headers = {name.replace("__", "."): TensorHeader(shape, torch.float32) for name, shape in shapes.items()}
    return AdapterLayout.of_names(headers)


def ways(layout):
    return {name: home.way for name, home in layout.homes.items()}


class Weighed(nn.Linear):
    def forward(self, x):
        return super().forward(2 * x)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Linear(3, 2), "linear"),
        (nn.Embedding(3, 2), "embedding"),
        (nn.Conv2d(3, 2, 3), "convolution"),
        (nn.Conv1d(3, 2, 3, stride=2, padding="valid"), "convolution"),
        (nn.Conv3d(3, 2, 1), "convolution"),
        (Weighed(3, 2), None),
        (nn.Embedding(3, 2, max_norm=1.0), None),
        (nn.Conv2d(4, 2, 3, groups=2), None),
        (nn.Conv2d(4, 2, 3, dilation=2), None),
        (nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"), None),
        (nn.ConvTranspose2d(4, 2, 3), None),
        (nn.Bilinear(2, 2, 2), None),
        (nn.LayerNorm(2), None),
        (nn.LSTM(2, 2), None),
    ],
)
def test_a_weight_has_factors_where_peft_adapts_its_module_rightly(module, kind):
    layout = layout_of(nn.ModuleDict({"x": module, "y": nn.Linear(1, 1)}))
    homes = {name: home for name, home in layout.homes.items() if name.startswith("x.")}
    assert {home.kind for home in homes.values() if home.way == "factors"} == ({kind} if kind else set())
    assert all(home.way == "module" for home in homes.values()) == (kind is None)


def test_weights_that_the_code_around_takes_are_held_whole():
    class Taking(nn.Module):
        def __init__(self):
            super().__init__()
            self.taken, self.called, self.asked = (nn.Linear(2, 2) for _ in range(3))

        def forward(self, x):
            if isinstance(self.asked.weight, torch.Tensor):
                x = x.to(self.asked.weight.dtype)
            return nn.functional.linear(self.asked(self.called(x)), self.taken.weight)

    homes = layout_of(nn.ModuleDict({"a": Taking()})).homes
    assert {name for name, home in homes.items() if home.way == "factors"} == {"a.called.weight", "a.asked.weight"}


def test_layers_whose_attributes_peft_has_not_are_held_whole():
    class Front(nn.Module):
        def __init__(self):
            super().__init__()
            self.strided, self.counted, self.wide, self.called = (nn.Conv1d(2, 2, 1) for _ in range(4))
            self.positions, self.inner = nn.Embedding(2, 2), nn.Sequential(nn.Linear(2, 2))

        def forward(self, x):
            x = self.called(self.lengthen(x)) + x.shape[-1] // self.strided.stride[0]
            return self.inner[0](x) + torch.arange(self.positions.num_embeddings) + self.wide.in_features

        def lengthen(self, x):
            return nn.functional.pad(x, (self.counted.kernel_size[0], 0))

    found = ways(layout_of(nn.ModuleDict({"front": Front(), "behind": nn.Linear(2, 2)})))
    whole = {name.split(".")[1] for name, way in found.items() if way == "module"}
    assert whole == {"strided", "counted", "positions"}
    assert found["front.wide.weight"] == found["front.inner.0.weight"] == found["front.called.weight"] == "factors"


@pytest.mark.parametrize(
    ("name", "way"), [("fc", "factors"), ("q_proj", "factors"), ("words", "module"), ("0", "module")]
)
def test_by_names_a_matrix_without_bias_is_linear_where_it_is_called_so(name, way):
    assert by_names(**{f"x__{name}__weight": (3, 2)}).homes[f"x.{name}.weight"].way == way


def test_by_names_a_bias_tells_which_way_a_weight_lies():
    homes = by_names(
        a__weight=(3, 2), a__bias=(3,), b__weight=(2, 2), b__bias=(2,), c__weight=(2, 2), c__bias=(1,)
    ).homes
    assert {name: home.kind for name, home in homes.items() if "weight" in name} == {
        "a.weight": "linear",
        "b.weight": "linear",
        "c.weight": None,
    }
    beside = by_names(a__weight=(2, 3), a__bias=(3,), b__weight=(2, 2), b__bias=(2,)).homes
    assert (beside["a.weight"].kind, beside["b.weight"].way) == ("transposed", "module")


def test_by_names_convolutions_and_fused_attention_are_held_whole():
    shapes = {"conv__weight": (4, 2, 3, 3), "conv__bias": (4,)}
    shapes |= {"attn__in_proj_weight": (6, 2), "attn__out_proj__weight": (2, 2), "attn__out_proj__bias": (2,)}
    assert "factors" not in ways(by_names(**shapes)).values()
