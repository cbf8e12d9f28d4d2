"""Merged models validated over ID and OOD loaders by the Lightning trainer."""

from lwptv_lightning.evaluation.builders import image_folders, timm_module
from lwptv_lightning.evaluation.data_statistics import fisher_diagonal, input_grams
from lwptv_lightning.evaluation.loaders import DOMAINS, require_loaders, sample_positions, split_name
from lwptv_lightning.evaluation.metrics import LoaderMetrics, SampleOutcomes, averages
from lwptv_lightning.evaluation.module import MergeModule, ranks_of
from lwptv_lightning.evaluation.suite import EvaluationSuite

__all__ = [
    "DOMAINS",
    "EvaluationSuite",
    "LoaderMetrics",
    "MergeModule",
    "SampleOutcomes",
    "averages",
    "fisher_diagonal",
    "image_folders",
    "input_grams",
    "ranks_of",
    "require_loaders",
    "sample_positions",
    "split_name",
    "timm_module",
]
