"""What task vectors were opened from."""

from __future__ import annotations

from lwptv_lightning.checkpoints import Checkpoint
from lwptv_lightning.task_vectors.task_vectors import TaskVectors


def checkpoints_of(vectors: TaskVectors) -> tuple[Checkpoint, ...]:
    """Return the base and each task's fine-tuned model, with what is known of their files.

    Example:
        >>> import torch
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}})
        >>> [checkpoint.source for checkpoint in checkpoints_of(vectors)]
        ['state dict', 'state dict']
    """
    return (vectors._base, *vectors._experts.values())
