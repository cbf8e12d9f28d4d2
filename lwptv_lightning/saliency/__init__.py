"""How much of each layer of each task vector is worth keeping, and what is pruned by that."""

from lwptv_lightning.saliency.elements import ElementPruning
from lwptv_lightning.saliency.mask import LayerMask, keep_most_salient
from lwptv_lightning.saliency.scores import SCORES, describe_scores, require_score, saliency_score, score_layers
from lwptv_lightning.saliency.statistics import LayerStatistics, collect_statistics, merged_layers
from lwptv_lightning.saliency.table import LayerTable
from lwptv_lightning.saliency.views import masked, masked_beside, thinned

__all__ = [
    "ElementPruning",
    "LayerMask",
    "LayerStatistics",
    "LayerTable",
    "collect_statistics",
    "keep_most_salient",
    "saliency_score",
    "score_layers",
]
