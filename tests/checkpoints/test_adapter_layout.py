import re
import warnings

import pytest
import torch
from torch import nn

from lwptv_lightning.checkpoints import AdapterLayout, TensorHeader, factor_matrix, factor_tensors


def layout_of(model):
    return AdapterLayout.of_model(TensorHeader.of_all(model.state_dict()), model)


def ways(layout):
    return {name: home.way for name, home in layout.homes.items()}


def test_a_model_that_is_a_layer_itself_has_no_factors():
    assert ways(layout_of(nn.Linear(2, 2))) == {"weight": "whole", "bias": "whole"}


def test_fused_attention_is_adapted_as_one_module():
    layout = layout_of(nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2)}))
    assert ways(layout) == {
        "attn.in_proj_weight": "factors",
        "attn.in_proj_bias": "whole",
        "attn.out_proj.weight": "whole",
        "attn.out_proj.bias": "whole",
    }
    keys = {
        name: layout.key(home, {"attn"}).removeprefix("base_model.model.attn.") for name, home in layout.homes.items()
    }
    assert keys["attn.in_proj_bias"] == "base_layer.in_proj_bias"
    assert keys["attn.out_proj.weight"] == "base_layer.out_proj.base_layer.weight"
    assert layout.key(layout.homes["attn.out_proj.bias"], set()) == "base_model.model.attn.out_proj.bias"
    apart = layout_of(nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2, kdim=3)}))
    assert "factors" not in ways(apart).values()


def test_parametrized_and_listed_tensors_are_held_by_themselves():
    model = nn.ModuleDict({"fc": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "y": nn.Linear(2, 2)})
    model["list"] = nn.ParameterList([torch.ones(2)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older kind
        model["conv"] = nn.utils.weight_norm(nn.Conv1d(2, 2, 1, groups=2, bias=False))
    found = ways(layout_of(model))
    assert {name for name, way in found.items() if way == "whole"} == {
        "fc.bias",
        "fc.parametrizations.weight.original0",
        "fc.parametrizations.weight.original1",
        "list.0",
        "conv.weight_g",
        "conv.weight_v",
        "y.bias",
    }


def test_a_module_is_held_whole_only_where_peft_takes_no_other_with_it():
    model = nn.ModuleDict(
        {"norm": nn.LayerNorm(2), "a": nn.ModuleDict({"norm": nn.LayerNorm(3)}), "fc": nn.Linear(1, 1)}
    )
    layout = layout_of(model)
    assert {home.way for name, home in layout.homes.items() if "norm" in name} == {"module"}
    assert set(layout.mates("norm")) == {"norm.weight", "norm.bias", "a.norm.weight", "a.norm.bias"}
    assert set(layout.mates("a.norm")) == {"a.norm.weight", "a.norm.bias"}
    model["xnorm"] = nn.Linear(2, 2)  # which ends alike, and would lose its factors
    found = ways(layout_of(model))
    assert (found["norm.weight"], found["a.norm.weight"], found["xnorm.weight"]) == ("whole", "module", "factors")


def test_a_module_whose_state_is_not_all_in_the_checkpoint_is_not_held_whole():
    model = nn.ModuleDict({"bn": nn.BatchNorm1d(2), "fc": nn.Linear(2, 2)})
    headers = TensorHeader.of_all(model.state_dict())
    assert AdapterLayout.of_model(headers, model).homes["bn.running_mean"].way == "module"
    del headers["bn.num_batches_tracked"]
    assert AdapterLayout.of_model(headers, model).homes["bn.running_mean"].way == "whole"


def test_targets_match_no_other_module():
    model = nn.ModuleDict({"fc": nn.Linear(2, 2), "a": nn.ModuleDict({"fc": nn.Linear(2, 2)})})
    layout = layout_of(model)
    assert layout.configuration({"a.fc": 2, "fc": 2}, (), ())["target_modules"] == ["a.fc", "fc"]
    assert layout.configuration({"a.fc": 2}, (), ())["target_modules"] == ["a.fc"]
    pattern = layout.configuration({"fc": 2}, (), ())["target_modules"]
    assert [path for path in ("fc", "a.fc") if re.fullmatch(pattern, path)] == ["fc"]


def test_ranks_other_than_the_usual_one_stand_in_patterns_that_match_one_module():
    model = nn.ModuleDict({"fc": nn.Linear(2, 2), "a": nn.ModuleDict({"fc": nn.Linear(2, 2), "b": nn.Linear(2, 2)})})
    config = layout_of(model).configuration({"fc": 1, "a.fc": 2, "a.b": 2}, (), ())
    assert (config["r"], config["lora_alpha"]) == (2, 2)
    assert config["rank_pattern"] == config["alpha_pattern"] == {"^fc": 1}
    assert [bool(re.match(r"(.*\.)?(^fc)$", path)) for path in ("fc", "a.fc")] == [True, False]


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(3, 4, bias=False), (2, 3)),
        (nn.Embedding(5, 4), (2, 5)),
        (nn.Conv2d(3, 4, (2, 3), bias=False), (2, 3, 2, 3)),
    ],
)
def test_the_factors_of_a_change_make_it_again(module, shape):
    layout = layout_of(nn.ModuleDict({"x": module}))
    home = layout.homes["x.weight"]
    b = torch.randn(4, 2)
    matrix = b @ torch.randn(2, 3 * 6 if len(shape) > 2 else shape[1])
    change = matrix.T if home.kind == "embedding" else matrix.reshape(module.weight.shape)
    assert torch.equal(factor_matrix(home, change), matrix)
    found = factor_tensors(home, b, torch.ones(2, matrix.shape[1]), tuple(change.shape))
    assert (
        next(
            tuple(tensor.shape) for name, tensor in found.items() if name.split(".lora_")[1].endswith(("A", "A.weight"))
        )
        == shape
    )


def test_what_has_the_mark_of_factors_in_its_name_has_no_home_but_factors():
    model = nn.ModuleDict({"lora_fc": nn.Linear(2, 2), "lora_norm": nn.LayerNorm(2), "fc": nn.Linear(2, 2)})
    assert set(layout_of(model).homes) == {"lora_fc.weight", "fc.weight", "fc.bias"}


def test_where_the_base_itself_is_changed_peft_is_told_by_the_option_for_biases():
    layout = layout_of(nn.ModuleDict({"fc": nn.Linear(2, 2)}))
    assert layout.configuration({"fc": 1}, (), ())["bias"] == "none"
    assert layout.configuration({"fc": 1}, (), [layout.homes["fc.bias"]])["bias"] == "all"


@pytest.mark.parametrize("name", ["default", "t", "layer", "base_layer", "r"])
def test_a_module_whose_path_ends_those_of_pefts_own_is_not_held_as_one(name):
    found = ways(layout_of(nn.ModuleDict({"fc": nn.Linear(2, 2), "x": nn.ModuleDict({name: nn.LayerNorm(2)})})))
    assert found[f"x.{name}.weight"] == "module"
    found = ways(layout_of(nn.ModuleDict({"fc": nn.Linear(2, 2), name: nn.LayerNorm(2)})))
    assert found[f"{name}.weight"] == "whole"
