"""Merged models whose coefficients are learnt."""

from lwptv_lightning.learning.adamerging import AdaMergingModule
from lwptv_lightning.learning.layer_gates import LayerGates

__all__ = ["AdaMergingModule", "LayerGates"]
