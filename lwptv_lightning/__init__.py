"""LwPTV: layer-wise pruning of task vectors for PyTorch Lightning.

Public names are imported on first use, so that ``import lwptv_lightning`` and ``lwptv --help`` load neither torch nor
Lightning.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULE_OF = {
    "AdaMergingModule": "learning",
    "CheckpointError": "checkpoints",
    "CollectDataStatistics": "callbacks",
    "CollectStatistics": "callbacks",
    "ElementPruning": "saliency",
    "EvaluationSuite": "evaluation",
    "Execution": "engine",
    "Heads": "evaluation",
    "Layer": "layers",
    "LayerMask": "saliency",
    "LayerStatistics": "saliency",
    "LayerTable": "saliency",
    "Layers": "layers",
    "LiNeS": "recipe",
    "LoaderName": "registry",
    "Merge": "merging",
    "MergeContext": "rules",
    "MergeModule": "evaluation",
    "MergeOptions": "merging",
    "MergePlan": "merging",
    "MergeRecipe": "recipe",
    "MergeReport": "callbacks",
    "MergeRule": "rules",
    "OnlineMerge": "callbacks",
    "Provenance": "checkpoints",
    "PruneAndMerge": "callbacks",
    "RecalibrateBatchNorm": "callbacks",
    "Stream": "engine",
    "TaskVectorCheckpoint": "callbacks",
    "TaskVectors": "task_vectors",
    "collect_statistics": "saliency",
    "get_rule": "rules",
    "install_": "merging",
    "keep_most_salient": "saliency",
    "layers_from_names": "layers",
    "make_recipe": "recipe",
    "merge": "merging",
    "merge_rule": "rules",
    "merge_transform": "merging",
    "open_checkpoint": "checkpoints",
    "plan_pruning": "merging",
    "saliency_score": "saliency",
    "save_merged": "merging",
    "score_layers": "saliency",
    "trace_layers": "layers",
}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    # A merging rule's class; rules register themselves, so they stand in no list here.
    if name[:1].isupper() and hasattr(rules := import_module(f"{__name__}.rules"), name):
        return getattr(rules, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
