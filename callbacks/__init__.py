"""Callbacks for any Trainer; they install as ``lwptv_lightning.callbacks``."""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "AdaMergingModule": "adamerging",
    "CollectStatistics": "collect_statistics",
    "MergeReport": "merge_report",
    "OnlineMerge": "online_merge",
    "PruneAndMerge": "prune_and_merge",
    "RecalibrateBatchNorm": "recalibrate_batch_norm",
    "TaskVectorCheckpoint": "task_vector_checkpoint",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"lwptv_lightning.callbacks.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
