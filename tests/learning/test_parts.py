import pytest
import torch
from _helpers.gated import TASKS, gated_module
from torch import nn

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors, merge
from lwptv_lightning.learning.parts import HeldParts, options_of_parts
from lwptv_lightning.saliency import merged_layers


def held(module, rule="task_arithmetic", **fields):
    layers = merged_layers(module.vectors, module.layers("module"))
    recipe = MergeRecipe(rule, 1.0, prune_on="parts", **fields)
    return HeldParts.of(module, recipe, layers, torch.empty(0)), layers, recipe


def coefficients(layers, seed=0):
    drawn = torch.rand(len(TASKS), len(layers), generator=torch.Generator().manual_seed(seed))
    return torch.where(drawn < 0.4, 0, drawn)


@pytest.mark.parametrize("calibrate", [None, {"name": "svc", "scale": 0.5}])
@pytest.mark.parametrize("rule", ["tsv_m", "task_arithmetic"])
def test_the_model_is_what_the_recipe_merges(rule, calibrate):
    module = gated_module()
    parts, layers, recipe = held(module, rule, calibrate=calibrate)
    given = coefficients(layers)
    rows = zip(TASKS, given.tolist(), strict=True)
    recipe = recipe.replace(coefficients={task: dict(zip(layers.names, row, strict=True)) for task, row in rows})
    merged = merge(module.vectors, recipe, module.layers("module"))
    for name, tensor in parts.model(given).items():
        torch.testing.assert_close(tensor.detach(), merged[name])


def test_the_gradient_is_that_of_a_graph_through_all_parts():
    parts, layers, _ = held(gated_module(), "tsv_m")
    given = coefficients(layers).requires_grad_()
    model = parts.model(given.detach())
    factors = {name: torch.randn_like(model[name]) for name in parts.parts}
    sum((model[name] * factor).sum() for name, factor in factors.items()).backward()
    total = 0
    for name, factor in factors.items():
        total = total + (torch.tensordot(given[:, layers.index_of(name)], parts.parts[name], 1) * factor).sum()
    (wanted,) = torch.autograd.grad(total, given)
    torch.testing.assert_close(parts.gradient(model, given.detach()), wanted)


def test_the_ratio_is_of_norms_over_the_model():
    module = gated_module()
    parts, _, _ = held(module)
    assert parts.ratio == pytest.approx(1)
    parts, _, _ = held(module, "tsv_m")
    taus = torch.cat([module.vectors.stack(name).sum(0).flatten() for name in module.vectors.names])
    sums = torch.cat([each.sum(0).flatten() for each in parts.parts.values()])
    assert parts.ratio == pytest.approx(float(taus.norm() / sums.norm()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_parts_are_held_in_the_bases_dtype(dtype):
    parts, _, _ = held(gated_module(dtype=dtype))
    assert {tensor.dtype for tensor in parts.parts.values()} == {dtype}


def test_task_vectors_that_cancel_out_leave_nothing_to_learn_on():
    model = nn.Linear(2, 2)
    base = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    tasks = {"a": base | {"weight": torch.eye(2)}, "b": base | {"weight": -torch.eye(2)}}
    with pytest.raises(ValueError, match="task vectors of all tasks add up to nothing"):
        held(MergeModule(model, TaskVectors.open(base, tasks)))


def test_a_mask_of_the_modules_own_recipe_is_none_of_the_parts():
    module = gated_module(max_memory="1GB")
    module.options["mask"] = "a mask"
    assert options_of_parts(module) == {"max_memory": "1GB"}
