"""A merge is asked for, planned, and poured into a dict, a file, a module or a graph."""

from lwptv_lightning.merging.adapter import SavedAdapter, parse_rank, require_adapter_place, save_adapter
from lwptv_lightning.merging.alike import made_as, unscaled
from lwptv_lightning.merging.backbone import find_backbone, named_submodule
from lwptv_lightning.merging.base_card import BaseCard
from lwptv_lightning.merging.card import card_beside, card_of, model_card
from lwptv_lightning.merging.card_metadata import TAGS
from lwptv_lightning.merging.coefficients import require_coefficients
from lwptv_lightning.merging.data import fingerprint_of_data, read_data_statistics, write_data_statistics
from lwptv_lightning.merging.factors import AdaptedLayer
from lwptv_lightning.merging.install import (
    exchange_,
    exchange_plan_,
    gather_state,
    install_,
    install_plan_,
    installable,
    materialize_,
    require_fit,
    snapshot,
    unset_by,
    whole_state,
)
from lwptv_lightning.merging.loading import Loading
from lwptv_lightning.merging.memory import MemoryLimitError
from lwptv_lightning.merging.merge import Merge, MergeOptions, SharedOptions, merge, plan_pruning, require_options
from lwptv_lightning.merging.modified import rule_of
from lwptv_lightning.merging.output import Beside, Output, base_classifier, plan_output, require_output
from lwptv_lightning.merging.parts import add_parts
from lwptv_lightning.merging.plan import MergePlan, treatment_of
from lwptv_lightning.merging.planning import require_divisible
from lwptv_lightning.merging.precision import in_dtype
from lwptv_lightning.merging.provenance import provenance_of
from lwptv_lightning.merging.prune import PruningPlan
from lwptv_lightning.merging.save import save_merged
from lwptv_lightning.merging.transform import merge_transform
from lwptv_lightning.merging.undo import Undo, keep_modes, swap_

__all__ = [
    "Merge",
    "MergeOptions",
    "MergePlan",
    "SavedAdapter",
    "add_parts",
    "install_",
    "merge",
    "merge_transform",
    "model_card",
    "plan_pruning",
    "save_adapter",
    "save_merged",
]
