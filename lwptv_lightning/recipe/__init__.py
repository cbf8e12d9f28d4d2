"""`MergeRecipe`: everything that decides what a merged model is, besides the checkpoints."""

from lwptv_lightning.recipe.pages import choices_markdown, fields_markdown
from lwptv_lightning.recipe.recipe import MODIFIERS, MergeRecipe, make_recipe
from lwptv_lightning.recipe.scaling import LiNeS, tensor_factors

__all__ = [
    "MODIFIERS",
    "LiNeS",
    "MergeRecipe",
    "choices_markdown",
    "fields_markdown",
    "make_recipe",
    "tensor_factors",
]
