import math

import pytest

from lwptv_lightning import MergeRecipe


def recipe_with(coefficients, **fields):
    return MergeRecipe(**{"prune_on": "parts", **fields}, coefficients=coefficients)


def test_numbers_keep_every_bit_and_globs_their_order():
    third = math.nextafter(1 / 3, 1)
    recipe = recipe_with({"b": {"head": 0, "*": third}, "a": {"*": 5e-324, "head": 1e300}})
    read = MergeRecipe.from_json(recipe.to_json())
    assert read == recipe
    assert read.coefficients == {"a": {"*": 5e-324, "head": 1e300}, "b": {"head": 0.0, "*": third}}
    assert list(read.coefficients["b"]) == ["head", "*"]


def test_the_order_of_tasks_has_no_meaning_and_that_of_globs_has_one():
    one, other = {"x": 1, "*": 2}, {"*": 2, "x": 1}
    assert recipe_with({"a": one, "b": one}) == recipe_with({"b": one, "a": one})
    assert recipe_with({"a": one}) != recipe_with({"a": other})
    assert len({recipe_with({"a": one}), recipe_with({"a": other}), recipe_with({"a": one})}) == 2


def test_they_are_frozen():
    recipe = recipe_with({"a": {"*": 1}})
    with pytest.raises(TypeError, match="frozen"):
        recipe.coefficients["a"]["*"] = 2


def test_a_recipe_with_them_needs_layers_and_says_so_in_tables():
    recipe = recipe_with({"a": {"*": 1}}, scale=0.5)
    assert recipe.needs_layers
    assert not recipe.prunes_layers
    assert recipe.describe() == "task_arithmetic x 0.5, coefficients"
    assert recipe.replace(scale=0.8).coefficients == recipe.coefficients


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"a": {"*": -0.5}}, ValueError, r"coefficients\['a'\]\['\*'\] must be a number of at least 0, not -0.5"),
        ({"a": {"*": math.nan}}, ValueError, "must be finite, not nan"),
        ({"a": {"*": math.inf}}, ValueError, "must be finite"),
        ({"a": {"*": True}}, TypeError, "must be a number, not True"),
        ({"a": {"*": "1"}}, TypeError, "must be a number, not '1'"),
        ({"a": {}}, TypeError, r"coefficients\['a'\] must map globs of layers to numbers"),
        ({"a": 0.5}, TypeError, r"coefficients\['a'\] must map globs of layers to numbers, not be 0.5"),
        ({}, TypeError, "must map tasks to globs"),
        ([0.5], TypeError, r"must map tasks to globs of layers with numbers, not be \[0.5\]"),
        ({"a": {None: 1}}, TypeError, r"a name in coefficients\['a'\] must be a text, not None"),
        ({"a": {0: 1, "0": 2}}, ValueError, "names '0' twice"),
    ],
)
def test_what_are_none(given, error, message):
    with pytest.raises(error, match=message):
        recipe_with(given)


def test_they_act_on_parts():
    with pytest.raises(ValueError, match="give prune_on='parts'"):
        recipe_with({"a": {"*": 1}}, prune_on="task_vectors")
