"""`MergeRecipe`: everything that decides what a merged model is, besides the checkpoints."""

from lwptv_lightning.recipe.recipe import MergeRecipe
from lwptv_lightning.recipe.scaling import LiNeS, tensor_factors

__all__ = ["LiNeS", "MergeRecipe", "tensor_factors"]
