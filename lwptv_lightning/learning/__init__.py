"""Merged models whose coefficients are learnt."""

from lwptv_lightning.learning.adamerging import AdaMergingModule

__all__ = ["AdaMergingModule"]
