"""The zoo as a `MergeModule` and its data; with plain values as arguments, as configuration files have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lwptv_lightning.evaluation import EvaluationSuite, MergeModule
from lwptv_lightning.registry import require_whole
from lwptv_lightning.task_vectors import TaskVectors
from lwptv_lightning.zoo.data import loaders
from lwptv_lightning.zoo.domains import ID_SETS, Split
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


def zoo_suite(size: int = 150, split: Split = "test", validation: int = 0) -> EvaluationSuite:
    """Return the zoo's sets.

    Args:
        size: Images in each set.
        split: Which images: ``"test"``, ``"validation"`` or ``"train"``.
        validation: Validation images of each ID set for choices; 0 for no such sets.
    """
    require_whole("size", size, 1)
    chosen = loaders("validation", size=validation, sets=ID_SETS) if require_whole("validation", validation, 0) else {}
    named = {name.partition("/")[2]: loader for name, loader in chosen.items()}
    return EvaluationSuite.of(loaders(split, size=size), named)
