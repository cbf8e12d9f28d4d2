import pytest

from lwptv_lightning import MergeRecipe
from lwptv_lightning.merging import rule_of
from lwptv_lightning.rules import RULES, InSubspace


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_plain_recipe_runs_its_own_rule(rule):
    recipe = MergeRecipe(rule)
    assert rule_of(recipe) is recipe.rule


def test_a_subspace_stands_around_it():
    recipe = MergeRecipe("ties", subspace={"name": "knots", "include": ["a"]})
    assert rule_of(recipe) == InSubspace(rule=recipe.rule, include=("a",))
