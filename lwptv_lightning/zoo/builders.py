"""The zoo as a `MergeModule` and its data; with plain values as arguments, as configuration files have them."""

from __future__ import annotations

from typing import Any

from lwptv_lightning.evaluation import EvaluationSuite, MergeModule
from lwptv_lightning.registry import require_whole
from lwptv_lightning.task_vectors import TaskVectors
from lwptv_lightning.zoo.data import loaders
from lwptv_lightning.zoo.files import base_path, expert_paths, heads
from lwptv_lightning.zoo.model import create_model


def zoo_module(recipe: str | dict[str, Any] | None = None) -> MergeModule:
    """Return the embedded zoo's base, experts and heads.

    Args:
        recipe: A rule's name, or fields of a `MergeRecipe`.
    """
    vectors = TaskVectors.open(base_path(), expert_paths())
    return MergeModule(create_model(), vectors, recipe, heads=heads())


def zoo_suite(size: int = 150) -> EvaluationSuite:
    """Return the zoo's test sets.

    Args:
        size: Images in each set.
    """
    require_whole("size", size, 1)
    return EvaluationSuite.of(loaders("test", size=size))
