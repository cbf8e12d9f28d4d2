"""A merge is asked for, planned, and poured into a dict, a file, a module or a graph."""

from lwptv_lightning.merging.gather import gather_state
from lwptv_lightning.merging.install import install_, materialize_, merge_into_, snapshot, whole_state
from lwptv_lightning.merging.memory import MemoryLimitError
from lwptv_lightning.merging.merge import iter_merged, merge
from lwptv_lightning.merging.plan import PruningPlan, plan_pruning
from lwptv_lightning.merging.save import metadata_of, save_merged
from lwptv_lightning.merging.transform import merge_transform

__all__ = [
    "MemoryLimitError",
    "PruningPlan",
    "gather_state",
    "install_",
    "iter_merged",
    "materialize_",
    "merge",
    "merge_into_",
    "merge_transform",
    "metadata_of",
    "plan_pruning",
    "save_merged",
    "snapshot",
    "whole_state",
]
