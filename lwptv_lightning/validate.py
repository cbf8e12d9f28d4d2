"""``lwptv validate``: LightningCLI over functions that make a `MergeModule` and its data from plain values.

A configuration names one function for ``model`` and one for ``data``; ``examples/demo.yaml`` shows the form. Functions
or classes of your own, in any importable module, do as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningCLI

from lwptv_lightning.datamodule import EvaluationSuite
from lwptv_lightning.module import MergeModule
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.task_vectors import TaskVectors


def validate(arguments: Sequence[str]) -> None:
    """Run ``lwptv validate`` with its arguments, such as ``["--config", "demo.yaml"]``."""
    with warnings.catch_warnings():
        # Lightning suspects a mistake where its arguments are given and the program has some of its own.
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        cli = LightningCLI(
            MergeModule,
            EvaluationSuite,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            save_config_callback=None,
            seed_everything_default=False,
            args=list(arguments),
            parser_kwargs={"prog": "lwptv validate", "description": "Validate a merged model over ID and OOD sets."},
        )
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)


def zoo_module(recipe: dict[str, Any] | None = None) -> MergeModule:
    """Return the embedded zoo's base, experts and heads.

    Args:
        recipe: Fields of a `MergeRecipe`.
    """
    from lwptv_lightning.demo import zoo_module

    return zoo_module(MergeRecipe.from_dict(recipe or {}))


def zoo_suite(size: int = 150) -> EvaluationSuite:
    """Return the zoo's test sets.

    Args:
        size: Images in each set.
    """
    from lwptv_lightning import zoo

    return EvaluationSuite.of(zoo.loaders("test", size=size))


def timm_module(
    model: str,
    base: str,
    tasks: dict[str, str],
    recipe: dict[str, Any] | None = None,
    exclude: list[str] | None = None,
    model_arguments: dict[str, Any] | None = None,
) -> MergeModule:
    """Return a timm model merged from checkpoint files.

    Classifiers whose shapes differ between the tasks become the tasks' heads.

    Args:
        model: A name for ``timm.create_model``.
        base: The base's checkpoint.
        tasks: Task name to fine-tuned checkpoint.
        recipe: Fields of a `MergeRecipe`.
        exclude: Globs of tensors that are not merged.
        model_arguments: Further arguments of ``timm.create_model``, such as ``{"num_classes": 0}``.
    """
    import timm

    module = timm.create_model(model, pretrained=False, **(model_arguments or {}))
    vectors = TaskVectors.open(base, tasks, exclude=exclude or (), model=module)
    return MergeModule(module, vectors, MergeRecipe.from_dict(recipe or {}))


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
