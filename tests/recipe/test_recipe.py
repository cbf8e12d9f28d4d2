import dataclasses
import json

import pytest

from lwptv_lightning import ElementPruning, MergeRecipe
from lwptv_lightning.recipe import LiNeS
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.rules._base import RULES, get_rule

OTHER_VALUES = {
    "rule": [get_rule("ties")(density=0.3, reduce="sum"), {"name": "dare", "seed": 5}, "consensus_ta"],
    "scale": [0.0, -1.5, 2],
    "score": ["random", "-l2"],
    "ratio": [0.25, 1],
    "granularity": ["block", "tensor"],
    "ranking": ["all"],
    "count": ["parameters"],
    "keep": [["head*"], ("a", "b")],
    "prune": [("blocks.?",)],
    "seed": [3],
    "elements": [ElementPruning(ratio=0.5), {"ratio": 0.25}],
    "prune_on": ["parts"],
    "layer_scaling": [LiNeS(alpha=0.25, beta=0.5), {"name": "lines", "blocks": r"layers\.(\d+)\."}, {"fc": 0.5}],
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(MergeRecipe)])
def test_every_field_survives_json_and_a_file(field, tmp_path):
    for value in OTHER_VALUES[field]:
        recipe = MergeRecipe(**{field: value})
        assert recipe != MergeRecipe()
        text = recipe.to_json()
        assert MergeRecipe.from_json(text) == recipe
        assert MergeRecipe.from_dict(json.loads(text)) == recipe
        (tmp_path / "recipe.json").write_text(text)
        assert MergeRecipe.from_json(tmp_path / "recipe.json") == recipe


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_survives_json(rule):
    recipe = MergeRecipe(rule=rule)
    assert type(MergeRecipe.from_json(recipe.to_json()).rule) is RULES[rule]
    assert MergeRecipe.from_json(recipe.to_json()) == recipe


def test_lists_become_tuples_and_names_become_rules():
    recipe = MergeRecipe(rule="ties", keep=["head"])
    assert recipe.keep == ("head",)
    assert recipe.rule == get_rule("ties")()


def test_recipes_are_frozen_and_hashable():
    recipe = MergeRecipe(ratio=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.ratio = 0.1
    assert {recipe: 1}[MergeRecipe(ratio=0.5)] == 1


def test_replace_changes_the_given_fields_alone():
    recipe = MergeRecipe(rule="ties", keep=("head",), elements=None)
    assert recipe.replace(ratio=0.5) == MergeRecipe(rule="ties", keep=("head",), ratio=0.5)
    with pytest.raises(ValueError, match="ratio"):
        recipe.replace(ratio=2)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"rule": "tise"}, "ties"),
        ({"rule": {"name": "ties", "densty": 0.1}}, "density"),
        ({"score": "mean_asb"}, "mean_abs"),
        ({"granularity": "modul"}, "module"),
        ({"ranking": "tasks"}, "task"),
        ({"count": "params"}, "parameters"),
        ({"prune_on": "part"}, "parts"),
    ],
)
def test_unknown_name_suggests_the_nearest(wrong, hint):
    with pytest.raises(UnknownNameError, match=f"Did you mean '{hint}'"):
        MergeRecipe(**wrong)


def test_unknown_field_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown field of a recipe 'ration'. Did you mean 'ratio'"):
        MergeRecipe.from_dict({"ration": 0.5})


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"ratio": 40}, ValueError, "not percent"),
        ({"scale": float("inf")}, ValueError, "scale must be finite"),
        ({"scale": "0.3"}, TypeError, "scale must be a number"),
        ({"keep": "head"}, TypeError, "keep must be a sequence"),
        ({"prune": [1]}, TypeError, "prune must be a sequence"),
        ({"elements": 0.5}, TypeError, "elements must be an ElementPruning"),
        ({"rule": 3}, TypeError, "rule must be a name"),
        ({"prune_on": "parts", "rule": "ties"}, ValueError, "sum over tasks; 'ties' is none"),
        ({"prune_on": "parts", "elements": ElementPruning(ratio=0.1)}, ValueError, "elements cannot stand beside"),
    ],
)
def test_wrong_values(wrong, error, message):
    with pytest.raises(error, match=message):
        MergeRecipe(**wrong)


@pytest.mark.parametrize("beside", [{"ratio": 0.5}, {"keep": ["a"]}, {"prune": ["a"]}])
def test_elements_take_the_place_of_a_layer_ratio(beside):
    with pytest.raises(ValueError, match="takes the place of ratio, keep and prune"):
        MergeRecipe(elements=ElementPruning(ratio=0.5), **beside)


@pytest.mark.parametrize("rule", RULES)
def test_parts_are_only_for_sums_over_tasks(rule):
    if RULES[rule].has_parts():
        assert MergeRecipe(rule=rule, prune_on="parts").prune_on == "parts"
    else:
        with pytest.raises(ValueError, match="sum over tasks"):
            MergeRecipe(rule=rule, prune_on="parts")


def test_scale_is_the_rules_own_unless_given():
    assert MergeRecipe("task_arithmetic").effective_scale == 0.3
    assert MergeRecipe("task_arithmetic", scale=0).effective_scale == 0
    assert MergeRecipe({"name": "task_arithmetic", "coefficients": [1, 2]}).effective_scale == 1


def test_what_a_recipe_needs():
    assert not MergeRecipe(keep=["a"]).needs_layers
    assert MergeRecipe(ratio=0.1).prunes_layers
    assert MergeRecipe(prune=["a"]).prunes_layers
    inside = MergeRecipe(elements={"ratio": 0.1})
    assert inside.needs_layers
    assert not inside.prunes_layers


def test_description():
    assert MergeRecipe("ties", ratio=0.4).describe() == "ties x 1, mean_abs 0.4"
    assert MergeRecipe("ties", elements={"ratio": 0.4}).describe() == "ties x 1, elements 0.4"
