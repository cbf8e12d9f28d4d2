"""Task vectors: a base and its fine-tuned models, brought to one set of names and stacked tensor by tensor."""

from lwptv_lightning.task_vectors.align import Aligned, align
from lwptv_lightning.task_vectors.classifiers import classifier_paths, output_paths, own_classifiers
from lwptv_lightning.task_vectors.integers import KEPT, differing, differs, quantized_apart, quantized_by
from lwptv_lightning.task_vectors.judgement import (
    UNLIKE,
    Judgement,
    TensorFigures,
    judge,
    measure,
    same_weights,
    whole_as_difference,
)
from lwptv_lightning.task_vectors.origin import checkpoints_of
from lwptv_lightning.task_vectors.roles import with_roles
from lwptv_lightning.task_vectors.stacks import ChangedStack, HeldStack, Stack, StoredStack, part, whole
from lwptv_lightning.task_vectors.state import running_statistics, state_among
from lwptv_lightning.task_vectors.task_vectors import TaskVectors
from lwptv_lightning.task_vectors.ties import find_ties, tied_in

__all__ = ["TaskVectors"]
