"""What merges of different recipes have in common: what a rule surveys, and what it makes."""

from __future__ import annotations

from collections.abc import Hashable

from lwptv_lightning.recipe import MergeRecipe


def unscaled(recipe: MergeRecipe) -> MergeRecipe:
    """Return a recipe without what changes neither what a rule surveys nor what is pruned.

    Coefficients are that, the task, and what calibrates.

    Example:
        >>> unscaled(MergeRecipe("emr", 0.5, task="a")) == MergeRecipe("emr")
        True
    """
    return recipe.replace(scale=None, layer_scaling=None, task=None, calibrate=None)


def made_as(recipe: MergeRecipe) -> Hashable:
    """Return what tells merged task vectors apart among recipes that are the same `unscaled`.

    A calibration gets them scaled, and what it is scaled with afterwards is a coefficient.

    Example:
        >>> made_as(MergeRecipe("emr", 0.5)) == made_as(MergeRecipe("emr", 0.3))
        True
    """
    if recipe.calibrate is None:
        return recipe.task
    given = recipe.calibrate.to_dict()
    return recipe.effective_scale, repr({name: given[name] for name in given if name != "scale"})
