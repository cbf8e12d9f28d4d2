import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jsonargparse
import pytest
import torch

from lwptv_lightning import ElementPruning, MergeRecipe
from lwptv_lightning.modifiers import KnOTS
from lwptv_lightning.recipe import LiNeS, make_recipe
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.rules import RULES, get_rule

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
    "coefficients": [{"b": {"head": 0, "*": 0.1}, "a": {"*": 1 / 3}}],
    "dtype": ["float64", torch.float64],
    "task": ["a"],
    "reweight": [],
    "calibrate": [],
    "subspace": ["knots", {"name": "knots", "include": ["*.weight", "head*"]}, KnOTS(include=())],
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(MergeRecipe)])
def test_every_field_survives_json_and_a_file(field, tmp_path):
    for value in OTHER_VALUES[field]:
        rule = {"task": {"rule": "emr"}, "coefficients": {"prune_on": "parts"}}.get(field, {})
        recipe = MergeRecipe(**rule, **{field: value})
        assert recipe != MergeRecipe(**rule)
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


def test_recipes_are_frozen():
    recipe = MergeRecipe(ratio=0.5, layer_scaling={"fc": 0.5})
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.ratio = 0.1
    with pytest.raises(TypeError, match="frozen"):
        recipe.layer_scaling["fc"] = 1.0


COEFFICIENTS = {"blocks.*": [1, 0.5], "*": [0.5, 0]}
HASHED = [
    {},
    {"ratio": 0.5, "keep": ["a"]},
    {"elements": {"ratio": 0.5}},
    {"layer_scaling": {"fc": 0.5, "head": 2}},
    {"layer_scaling": LiNeS()},
    {"prune_on": "parts", "coefficients": {"a": {"fc": 0.5, "*": 2}}},
    {"rule": {"name": "adamerging", "coefficients": COEFFICIENTS}},
    {"rule": {"name": "weighted_average", "weights": [1, 2]}},
]


@pytest.mark.parametrize("values", HASHED, ids=str)
def test_equal_recipes_hash_equal_and_survive_copies(values):
    recipe = MergeRecipe(**values)
    others = [MergeRecipe(**copy.deepcopy(values)), pickle.loads(pickle.dumps(recipe)), copy.deepcopy(recipe)]
    others.append(MergeRecipe.from_json(recipe.to_json()))
    for other in others:
        assert (other, hash(other)) == (recipe, hash(recipe))
    assert len({MergeRecipe(**values) for values in HASHED}) == len(HASHED)


def test_the_order_of_mappings_counts_where_it_has_a_meaning():
    first, second = ({"fc": 0.5, "head": 2}, {"head": 2, "fc": 0.5})
    recipes = [MergeRecipe(layer_scaling=scaling) for scaling in (first, second)]
    assert recipes[0] == recipes[1]
    assert hash(recipes[0]) == hash(recipes[1])
    rules = [
        {"name": "adamerging", "coefficients": dict(order)}
        for order in ([*COEFFICIENTS.items()], [*COEFFICIENTS.items()][::-1])
    ]
    assert MergeRecipe(rules[0]) != MergeRecipe(rules[1])  # the first glob that matches counts


def test_fields_keep_their_places():
    assert [field.name for field in dataclasses.fields(MergeRecipe)] == list(OTHER_VALUES)
    recipe = MergeRecipe("ties", 0.3, "l2", 0.5, "block", "all", "parameters", ["a"], ["b"], 3, None, "task_vectors")
    assert (recipe.keep, recipe.prune, recipe.seed, recipe.prune_on) == (("a",), ("b",), 3, "task_vectors")


def test_dtype_is_a_name_and_given_as_torch_has_it():
    for given in ("float64", "torch.float64", torch.float64):
        recipe = MergeRecipe(dtype=given)
        assert (recipe.dtype, recipe.torch_dtype) == ("float64", torch.float64)
    assert MergeRecipe().torch_dtype is torch.float32
    with pytest.raises(ValueError, match=r"dtype must be torch\.float32 or torch\.float64, not torch\.float16"):
        MergeRecipe(dtype=torch.float16)


def test_a_task_is_only_for_rules_that_make_a_model_for_each():
    assert MergeRecipe("emr", task="a").describe() == "emr for a x 1"
    with pytest.raises(ValueError, match="rule 'ties' merges all tasks into one model, so task='a' has no meaning"):
        MergeRecipe("ties", task="a")
    with pytest.raises(TypeError, match="task must be the name of a task, not 3"):
        MergeRecipe("emr", task=3)


def test_make_recipe_takes_a_name_a_mapping_or_a_recipe():
    recipe = MergeRecipe("ties", ratio=0.5)
    assert make_recipe(recipe) is recipe
    assert make_recipe({"rule": "ties", "ratio": 0.5}) == recipe
    assert make_recipe("ties") == MergeRecipe("ties")
    with pytest.raises(UnknownNameError, match="Did you mean 'ties'"):
        make_recipe("tise")
    for wrong in (3, None, ["ties"]):
        with pytest.raises(TypeError, match="a recipe must be a mapping of its fields"):
            make_recipe(wrong)


def test_a_recipe_of_before_reads():
    fields = """{"rule": {"name": "ties", "density": 0.1, "reduce": "mean", "scope": "model"}, "scale": null,
        "score": "mean_abs", "ratio": 0, "granularity": "module", "ranking": "task", "count": "layers", "keep": [],
        "prune": [], "seed": -1, "elements": null, "prune_on": "task_vectors",
        "layer_scaling": {"name": "lines", "alpha": null, "beta": 1, "blocks": null}}"""
    expected = MergeRecipe({"name": "ties", "density": 0.1}, seed=-1, layer_scaling=LiNeS(beta=1.0))
    assert MergeRecipe.from_json(fields) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting property name"),
        ("[1]", r"a recipe must be a mapping of its fields, not \[1\]"),
        ('{"ratio": "0.5"}', "ratio must be a number in"),
        ('{"seed": 0.5}', "seed must be a whole number"),
        ('{"keep": [1]}', "keep must be a sequence of globs"),
        ('{"score": 3}', "unknown saliency score '3'"),
        ('{"rule": {"nam": "ties"}}', "rule must be a name, a mapping with a 'name'"),
        ('{"rule": "tise"}', "Did you mean 'ties'"),
        ('{"elements": {"rato": 0.5}}', "elements must be an ElementPruning or a mapping with its ratio"),
        ('{"elements": {"ratio": 5}}', "the ratio of elements must lie in"),
        ('{"layer_scaling": {"name": "lines", "bta": 1}}', "unknown field of LiNeS 'bta'. Did you mean 'beta'"),
        ('{"layer_scaling": {"fc": "x"}}', "layer_scaling.'fc'. must be a number"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path, text, words):
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"recipe.json: .*{words}") as error:
        MergeRecipe.from_json(path)
    assert "\n" not in str(error.value)


def test_configurations_make_recipes():
    def build(recipe: MergeRecipe) -> None:
        pass

    parser = jsonargparse.ArgumentParser()
    parser.add_function_arguments(build)
    made = parser.instantiate_classes(parser.parse_args(["--recipe.rule=ties", "--recipe.keep=[head]"]))
    assert made.recipe == MergeRecipe("ties", keep=["head"])


def test_fields_are_read_without_torch_and_documented():
    script = "import sys, lwptv_lightning.recipe; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
    for declared in (MergeRecipe, LiNeS, ElementPruning):
        for field in dataclasses.fields(declared):
            assert f"\n    {field.name}: {field.metadata['help']}" in declared.__doc__
            assert field.metadata["help"]


def test_replace_changes_the_given_fields_alone():
    recipe = MergeRecipe(rule="ties", keep=("head",), elements=None)
    assert recipe.replace(ratio=0.5) == MergeRecipe(rule="ties", keep=("head",), ratio=0.5)
    with pytest.raises(ValueError, match="ratio"):
        recipe.replace(ratio=2)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"rule": "tise"}, "ties"),
        ({"dtype": "float46"}, "float64"),
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
        ({"prune_on": "parts", "rule": "wudi"}, ValueError, "sum over tasks; 'wudi' is none: its optimiser"),
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


def test_a_file_that_is_no_regular_one_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "recipe.json")
    for path, kind in (
        (tmp_path / "recipe.json", "a FIFO"),
        (tmp_path, "a folder"),
        (Path("/dev/zero"), "a character"),
    ):
        with pytest.raises(ValueError, match=f"{path}: expected a regular file, not {kind}"):
            MergeRecipe.from_json(path)
