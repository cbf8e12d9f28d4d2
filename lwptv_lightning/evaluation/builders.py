"""Functions that make a `MergeModule` and its data from plain values, for configuration files."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchmetrics import Metric, MetricCollection

from lwptv_lightning.evaluation.image_folder import ClassFolders
from lwptv_lightning.evaluation.loaders import EvaluationSuite
from lwptv_lightning.evaluation.module import MergeModule
from lwptv_lightning.task_vectors import TaskVectors


def timm_module(
    model: str,
    base: str,
    tasks: dict[str, str],
    recipe: str | dict[str, Any] | None = None,
    exclude: list[str] | None = None,
    model_arguments: dict[str, Any] | None = None,
    heads: dict[str, str | nn.Module] | str | None = None,
    metric: Metric | MetricCollection | dict[str, Metric | MetricCollection] | None = None,
    expert_accuracy: dict[str, float] | None = None,
    resize_position_embedding: bool = False,
    batch_keys: list[Any] | None = None,
) -> MergeModule:
    """Return a timm model merged from checkpoint files; classifiers whose shapes differ become the tasks' heads.

    Args:
        model: A name for ``timm.create_model``.
        base: The base's checkpoint.
        tasks: Task name to fine-tuned checkpoint.
        recipe: A rule's name, or fields of a `MergeRecipe`.
        exclude: Globs of tensors that are not merged.
        model_arguments: Further arguments of ``timm.create_model``, such as ``{"num_classes": 0}``.
        heads: Set name to the name of another set, whose head it has; to a checkpoint, whose classifier is its head; or
            to a module, such as a `zero_shot_head`. Or a file of heads.
        metric: A metric, or one for each loader; top-1 accuracy by default.
        expert_accuracy: Set name to the accuracy of its expert.
        resize_position_embedding: Whether to resample what is of another image size; see `TaskVectors.open`.
        batch_keys: Where a batch has inputs and targets; see `MergeModule`.
    """
    import timm

    made = timm.create_model(model, pretrained=False, **(model_arguments or {}))
    return files_module(
        made,
        base,
        tasks,
        recipe,
        exclude,
        heads=heads,
        metric=metric,
        expert_accuracy=expert_accuracy,
        resize_position_embedding=resize_position_embedding,
        batch_keys=batch_keys,
    )


def files_module(
    model: nn.Module,
    base: str,
    tasks: dict[str, str],
    recipe: str | dict[str, Any] | None = None,
    exclude: list[str] | None = None,
    prefix: str | None = None,
    heads: dict[str, str | nn.Module] | str | None = None,
    metric: Metric | MetricCollection | dict[str, Metric | MetricCollection] | None = None,
    expert_accuracy: dict[str, float] | None = None,
    batch_keys: list[Any] | None = None,
    output_key: str | int | None = None,
    resize_position_embedding: bool = False,
) -> MergeModule:
    """Return any model merged from checkpoint files; classifiers whose shapes differ become the tasks' heads.

    Args:
        model: The architecture, such as ``{"class_path": "torchvision.models.resnet18"}`` in a configuration file.
        base: The base's checkpoint.
        tasks: Task name to fine-tuned checkpoint.
        recipe: A rule's name, or fields of a `MergeRecipe`.
        exclude: Globs of tensors that are not merged.
        prefix: What the wanted names start with in Lightning checkpoints; found by itself in most.
        heads: As for `timm_module`.
        metric: A metric, or one for each loader; top-1 accuracy by default.
        expert_accuracy: Set name to the accuracy of its expert.
        batch_keys: Where a batch has inputs and targets; see `MergeModule`.
        output_key: Where the logits are in what the model returns.
        resize_position_embedding: As for `timm_module`.
    """
    resizes = {"resize_position_embedding": resize_position_embedding}
    vectors = TaskVectors.open(base, tasks, exclude=exclude or (), model=model, prefix=prefix, **resizes)
    given: Any = heads
    return MergeModule(
        model,
        vectors,
        recipe,
        heads=given,
        metric=metric,
        expert_accuracy=expert_accuracy,
        batch_keys=batch_keys,
        output_key=output_key,
    )


def image_folders(
    id: dict[str, str],
    ood: dict[str, str] | None = None,
    image_size: int = 224,
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
    std: tuple[float, float, float] = (0.229, 0.224, 0.225),
    batch_size: int = 128,
    num_workers: int = 4,
    crop_pct: float | None = None,
    interpolation: str = "bilinear",
    validation: dict[str, str] | None = None,
) -> EvaluationSuite:
    """Return sets of images in folders, one sub-folder for each class, resized and cropped at the centre.

    Args:
        id: Task name to folder.
        ood: Name, or ``"<group>/<name>"``, to folder.
        image_size: Height and width in pixels.
        mean: Of each channel, to subtract.
        std: Of each channel, to divide by.
        batch_size: Images in a batch.
        num_workers: Processes that load images, for each set.
        crop_pct: The part of the resized image that is kept, in (0, 1]; 0.875 by default.
        interpolation: How images are resized.
        validation: Task name to a folder of other images of its domain, for choices.
    """
    from timm.data import create_transform

    prepared: dict[str, Any] = {"mean": mean, "std": std, "crop_pct": crop_pct, "interpolation": interpolation}
    transform = create_transform(image_size, **prepared, is_training=False)
    groups = [id, ood or {}, validation or {}]
    sets, others, chosen = (
        {name: ClassFolders(path, name, transform=transform) for name, path in group.items()} for group in groups
    )
    return EvaluationSuite(sets, others, validation=chosen, batch_size=batch_size, num_workers=num_workers)
