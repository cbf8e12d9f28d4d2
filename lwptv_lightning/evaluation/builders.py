"""Functions that make a `MergeModule` and its data from plain values, for configuration files."""

from __future__ import annotations

from typing import Any

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
) -> MergeModule:
    """Return a timm model merged from checkpoint files; classifiers whose shapes differ become the tasks' heads.

    Args:
        model: A name for ``timm.create_model``.
        base: The base's checkpoint.
        tasks: Task name to fine-tuned checkpoint.
        recipe: A rule's name, or fields of a `MergeRecipe`.
        exclude: Globs of tensors that are not merged.
        model_arguments: Further arguments of ``timm.create_model``, such as ``{"num_classes": 0}``.
    """
    import timm

    module = timm.create_model(model, pretrained=False, **(model_arguments or {}))
    vectors = TaskVectors.open(base, tasks, exclude=exclude or (), model=module)
    return MergeModule(module, vectors, recipe)


def image_folders(
    id: dict[str, str],
    ood: dict[str, str] | None = None,
    image_size: int = 224,
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
    std: tuple[float, float, float] = (0.229, 0.224, 0.225),
    batch_size: int = 128,
    num_workers: int = 4,
) -> EvaluationSuite:
    """Return sets of images in folders, one sub-folder for each class, resized and cropped at the centre.

    Args:
        id: Task name to folder.
        ood: Name to folder.
        image_size: Height and width in pixels.
        mean: Of each channel, to subtract.
        std: Of each channel, to divide by.
        batch_size: Images in a batch.
        num_workers: Processes that load images, for each set.
    """
    from timm.data import create_transform
    from torchvision.datasets import ImageFolder

    transform = create_transform(image_size, mean=mean, std=std, is_training=False)
    sets = [{name: ImageFolder(folder, transform) for name, folder in (group or {}).items()} for group in (id, ood)]
    return EvaluationSuite(*sets, batch_size=batch_size, num_workers=num_workers)
