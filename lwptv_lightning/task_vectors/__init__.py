"""Task vectors: a base and its fine-tuned models, brought to one set of names and stacked tensor by tensor."""

from lwptv_lightning.task_vectors.align import align_base, align_expert, open_unprefixed
from lwptv_lightning.task_vectors.stacks import HeldStack, Stack, part, whole
from lwptv_lightning.task_vectors.task_vectors import TaskVectors, classifier_paths, differing_classifiers

__all__ = [
    "HeldStack",
    "Stack",
    "TaskVectors",
    "align_base",
    "align_expert",
    "classifier_paths",
    "differing_classifiers",
    "open_unprefixed",
    "part",
    "whole",
]
