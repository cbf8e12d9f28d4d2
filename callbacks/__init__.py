"""Callbacks for any Trainer; they install as ``lwptv_lightning.callbacks``."""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "AdaMergingModule": "learning",  # where it was once
    "CollectDataStatistics": "callbacks.collect_data_statistics",
    "CollectStatistics": "callbacks.collect_data_statistics",  # what it was called once
    "MergeReport": "callbacks.merge_report",
    "OnlineMerge": "callbacks.online_merge",
    "PruneAndMerge": "callbacks.prune_and_merge",
    "RecalibrateBatchNorm": "callbacks.recalibrate_batch_norm",
    "TaskVectorCheckpoint": "callbacks.task_vector_checkpoint",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"lwptv_lightning.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
