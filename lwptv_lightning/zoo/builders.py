"""The zoo as a `MergeModule` and its data; with plain values as arguments, as configuration files have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lwptv_lightning.evaluation import EvaluationSuite, MergeModule
from lwptv_lightning.registry import require_whole
from lwptv_lightning.task_vectors import TaskVectors
from lwptv_lightning.zoo.data import loaders
from lwptv_lightning.zoo.domains import Split
from lwptv_lightning.zoo.files import HEADS_FILE, base_path, expert_paths, heads
from lwptv_lightning.zoo.model import create_model


def zoo_module(
    recipe: str | dict[str, Any] | None = None, base: str | None = None, tasks: dict[str, str] | None = None
) -> MergeModule:
    """Return the embedded zoo's base, experts and heads, or those of other files.

    Args:
        recipe: A rule's name, or fields of a `MergeRecipe`.
        base: The base's file; where heads lie beside it, as in a folder of `build`, these are taken.
        tasks: Task name to the file of its expert.
    """
    beside = None if base is None or not Path(base).with_name(HEADS_FILE).is_file() else Path(base).parent
    vectors = TaskVectors.open(base_path() if base is None else base, tasks or expert_paths())
    return MergeModule(create_model(), vectors, recipe, heads=heads(beside))


def zoo_suite(size: int = 150, split: Split = "test") -> EvaluationSuite:
    """Return the zoo's sets.

    Args:
        size: Images in each set.
        split: Which images: ``"test"``, ``"validation"`` or ``"train"``.
    """
    require_whole("size", size, 1)
    return EvaluationSuite.of(loaders(split, size=size))
