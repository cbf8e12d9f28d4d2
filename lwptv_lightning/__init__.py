"""LwPTV: layer-wise pruning of task vectors for PyTorch Lightning.

Public names are imported on first use, so that ``import lwptv_lightning`` and ``lwptv --help`` load neither torch nor
Lightning.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMES_IN = {
    "registry": "LoaderName",
    "checkpoints": "CheckpointError Provenance open_checkpoint",
    "layers": "Layer Layers layers_from_names trace_layers",
    "task_vectors": "TaskVectors",
    "engine": "Execution Memo Stream",
    "saliency": (
        "ElementPruning LayerMask LayerStatistics LayerTable collect_statistics keep_most_salient "
        "saliency_score score_layers"
    ),
    "rules": "MergeContext MergeRule get_rule merge_rule",
    "modifiers": "KnOTS MonoSoup SVC SubspaceBoosting",
    "recipe": "LiNeS MergeRecipe make_recipe",
    "merging": (
        "Merge MergeOptions MergePlan install_ merge merge_transform model_card plan_pruning save_adapter save_merged"
    ),
    "evaluation": "EvaluationSuite Heads MergeModule ZeroShotHead heads_from load_merged read_heads zero_shot_head",
    "search": "Gates SearchSpace SweepResult TuneResult best one_standard_error sweep tune",
    "learning": "AdaMergingModule LayerGates",
    "callbacks": (
        "CollectDataStatistics CollectStatistics MergeReport OnlineMerge PruneAndMerge RecalibrateBatchNorm "
        "TaskVectorCheckpoint"
    ),
}
_ROOM_OF = {name: room for room, names in _NAMES_IN.items() for name in names.split()}

__all__ = ["__version__", *_ROOM_OF]


def __getattr__(name: str) -> Any:
    if name in _ROOM_OF:
        return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    # The class of a merging rule or a modifier; they register themselves, so they stand in no list here.
    for room in ("rules", "modifiers") if name[:1].isupper() else ():
        if hasattr(found := import_module(f"{__name__}.{room}"), name):
            return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
