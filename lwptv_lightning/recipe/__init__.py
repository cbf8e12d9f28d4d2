"""`MergeRecipe`: everything that decides what a merged model is, besides the checkpoints."""

from lwptv_lightning.recipe.recipe import MergeRecipe, fields_markdown, make_recipe
from lwptv_lightning.recipe.scaling import LiNeS, tensor_factors

__all__ = ["LiNeS", "MergeRecipe", "fields_markdown", "make_recipe", "tensor_factors"]
