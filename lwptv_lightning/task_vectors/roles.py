"""What is known of the tensors of task vectors, taken from elsewhere than a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lwptv_lightning.registry import require_known
from lwptv_lightning.task_vectors.task_vectors import TaskVectors


def with_roles(
    vectors: TaskVectors, averaged: Sequence[str], copied: Sequence[str], tied: Mapping[str, str]
) -> TaskVectors:
    """Return the same task vectors with what `TaskVectors.knowing` found of a model when they were merged.

    Args:
        vectors: The task vectors, with or without that.
        averaged: What is no weight, but averaged.
        copied: What stays the base's, of the floating tensors.
        tied: Further names of tied weights, each mapped to one that is merged.

    Raises:
        UnknownNameError: There is no such tensor to merge.

    Example:
        >>> import torch
        >>> base = {"w": torch.ones(2), "m": torch.ones(2)}
        >>> vectors = TaskVectors.open(base, {"a": {name: tensor * 2 for name, tensor in base.items()}})
        >>> with_roles(vectors, averaged=["m"], copied=[], tied={}).names
        ('w',)
    """
    floating = dict.fromkeys(name for name in vectors.shared_names if vectors.headers[name].dtype.is_floating_point)
    for name in (*averaged, *copied, *tied, *tied.values()):
        require_known("tensor", name, floating)
    apart = {*averaged, *copied, *tied}
    made = vectors.select(vectors.tasks)
    made.names = tuple(name for name in vectors.headers if name in floating and name not in apart)
    made.copied = (*(name for name in vectors.shared_names if name not in floating), *copied)
    made.averaged, made.tied = tuple(averaged), dict(tied)
    return made
