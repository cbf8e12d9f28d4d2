"""Merged models validated over ID and OOD loaders by the Lightning trainer."""

from lwptv_lightning.evaluation.averages import averages
from lwptv_lightning.evaluation.batch_norm import STATISTICS, NormAverages, measuring, norms_of, of_norms
from lwptv_lightning.evaluation.builders import files_module, image_folders, timm_module
from lwptv_lightning.evaluation.class_paths import accepted, is_class_path, made_of, named_object, returns
from lwptv_lightning.evaluation.classifiers import classifier_of, heads_from
from lwptv_lightning.evaluation.collector import StatisticsCollector
from lwptv_lightning.evaluation.data_modules import as_suite
from lwptv_lightning.evaluation.data_statistics import fisher_diagonal, input_grams
from lwptv_lightning.evaluation.dtypes import in_precision
from lwptv_lightning.evaluation.first_samples import first_samples
from lwptv_lightning.evaluation.given_heads import HeadsGiven
from lwptv_lightning.evaluation.given_weights import holding, weights_of
from lwptv_lightning.evaluation.heads import Heads, own_heads
from lwptv_lightning.evaluation.heads_file import heads_path, read_heads, write_heads
from lwptv_lightning.evaluation.image_folder import IMAGES, is_left_alone
from lwptv_lightning.evaluation.image_suite import given_set, image_suite
from lwptv_lightning.evaluation.image_transform import ImageTransform, image_transform
from lwptv_lightning.evaluation.inputs import (
    count_samples,
    each_sample,
    fingerprints,
    inputs_of,
    take_samples,
    tensors_of,
)
from lwptv_lightning.evaluation.interface import Interface, naming_loader
from lwptv_lightning.evaluation.labels import require_classified, require_labels
from lwptv_lightning.evaluation.lightning import (
    averages_of,
    batch_limit,
    callbacks_of,
    draws_kept,
    fit_loaders,
    fit_on_,
    loaders_of,
    merging_together,
    on_rank_zero,
    ranks_of,
    replicas_of,
    require_every_loader,
    require_results_here,
    share_evaluation_,
    shared_loaders,
    stage_of,
    tell_reduced_,
    trainer_of,
    transferred,
    uncombined,
    validating,
)
from lwptv_lightning.evaluation.loaders import EvaluationSuite, loader_like, require_loaders, with_own_workers
from lwptv_lightning.evaluation.measured import Measured
from lwptv_lightning.evaluation.merging import merge_model_
from lwptv_lightning.evaluation.merging_callback import MergingCallback, merge_for_
from lwptv_lightning.evaluation.metric_choice import no_fractions
from lwptv_lightning.evaluation.metrics import LoaderMetrics, all_the_same, require_batches
from lwptv_lightning.evaluation.module import MergeModule
from lwptv_lightning.evaluation.named_sets import NamedSet, named_set
from lwptv_lightning.evaluation.reload import load_merged
from lwptv_lightning.evaluation.remembering import remembering, with_memo
from lwptv_lightning.evaluation.shares import Replicas, is_located, share_loaders, share_of
from lwptv_lightning.evaluation.typed_values import in_our_words
from lwptv_lightning.evaluation.weights import WeightsOwner, owner_of
from lwptv_lightning.evaluation.zero_shot import SENTENCES, ZeroShotHead, zero_shot_head
from lwptv_lightning.registry import LoaderName

__all__ = [
    "EvaluationSuite",
    "Heads",
    "LoaderName",
    "MergeModule",
    "ZeroShotHead",
    "heads_from",
    "load_merged",
    "read_heads",
    "zero_shot_head",
]
