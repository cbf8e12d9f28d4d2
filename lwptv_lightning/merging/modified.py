"""The rule that really runs: a recipe's own, with what the recipe puts around it."""

from __future__ import annotations

from typing import Any

from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.rules import InSubspace, MergeRule


def rule_of(recipe: MergeRecipe) -> MergeRule[Any]:
    """Return the rule that merges the task vectors.

    Example:
        >>> rule_of(MergeRecipe("ties"))
        TIES(density=0.2, reduce='mean', scope='model')
    """
    if recipe.subspace is None:
        return recipe.rule
    return InSubspace(rule=recipe.rule, include=recipe.subspace.include)
