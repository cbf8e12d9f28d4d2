"""Merged models whose coefficients are learnt."""

from lwptv_lightning.learning.adamerging import AdaMergingModule
from lwptv_lightning.learning.layer_gates import LayerGates
from lwptv_lightning.learning.samples import require_own_loaders, require_whole_models

__all__ = ["AdaMergingModule", "LayerGates"]
