"""Merge CLIP experts and validate them over merged, held-out and corrupted sets.

python examples/clip_benchmark/run.py examples/clip_benchmark/suite_8.yaml --rule task_arithmetic --ratio 0.5

Needs a network, ``pip install "lwptv-lightning[clip]" datasets`` and some 10 GB of disk for the eight tasks.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import Dataset

from lwptv_lightning import EvaluationSuite, MergeModule, MergeRecipe, MergeReport, TaskVectors

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from corruptions import Corrupted  # noqa: E402
from heads import cached_heads, open_clip_encoder  # noqa: E402


@dataclass(frozen=True)
class Suite:
    """What a suite's YAML file says."""

    model: str
    base: str
    experts: str
    merged: list[str]
    held_out: list[str]
    corruptions: list[str]
    text_encoder: dict[str, str]
    model_options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Suite":
        return cls(**yaml.safe_load(path.read_text()))


class HubImages(Dataset):
    """The test images of a task, from the ``datasets`` library, ready for the model."""

    def __init__(self, task: str, transform: Callable[[Any], Tensor]) -> None:
        from datasets import load_dataset

        about = yaml.safe_load((HERE / "tasks.yaml").read_text())[task]
        self.rows = load_dataset(about["data"], about.get("configuration"), split=about.get("split", "test"))
        self.image, self.label = about.get("image", "image"), about.get("label", "label")
        self.transform = transform
        self.classes = about.get("classes") or self.rows.features[self.label].names

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.rows[index]
        return self.transform(row[self.image].convert("RGB")), int(row[self.label])


def benchmark(
    suite: Suite,
    recipes: list[MergeRecipe],
    folder: Path,
    load_images: Callable[..., Dataset] = HubImages,
    make_text_encoder: Callable[[], tuple[nn.Module, Any]] | None = None,
    trainer_options: dict[str, Any] | None = None,
) -> list[dict[str, float]]:
    """Validate each recipe's merged model; return its averages and write a report.

    Args:
        suite: Models and sets.
        recipes: What to compare.
        folder: Where the report and the cached heads go.
        load_images: Task name and image transform to a data set with an attribute ``classes``.
        make_text_encoder: Returns an open_clip model and its tokenizer.
        trainer_options: For Lightning's Trainer.
    """
    model = timm.create_model(suite.model, pretrained=False, **suite.model_options)
    # Only the encoders were tuned: the projection is CLIP's own.
    vectors = TaskVectors.open(
        suite.base,
        {task: suite.experts.format(task=task) for task in suite.merged},
        model=model,
        exclude=("head.*",),
    )
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    images = {task: load_images(task, transform) for task in (*suite.merged, *suite.held_out)}
    encoder = make_text_encoder or (lambda: open_clip_encoder(**suite.text_encoder))
    heads = cached_heads(folder / "heads", {task: data.classes for task, data in images.items()}, encoder)
    corrupted = suite.merged[0]
    ood = {task: images[task] for task in suite.held_out}
    for corruption in suite.corruptions:
        name = f"{corrupted}-{corruption}"
        ood[name] = Corrupted(images[corrupted], corruption)
        heads[name] = heads[corrupted]
    data = EvaluationSuite(id={task: images[task] for task in suite.merged}, ood=ood)
    trainer = Trainer(logger=False, callbacks=[MergeReport(str(folder))], **(trainer_options or {}))
    averages = []
    for recipe in recipes:
        module = MergeModule(model, vectors, recipe, heads=heads)
        results = trainer.validate(module, datamodule=data, verbose=False)
        averages.append({name: value for result in results for name, value in result.items() if name.endswith("/avg")})
    return averages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", type=Path)
    parser.add_argument("--rule", default="task_arithmetic")
    parser.add_argument("--scale", type=float, default=0.3)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("clip_benchmark"))
    options = parser.parse_args()
    recipes = [MergeRecipe(options.rule, options.scale, ratio=ratio) for ratio in (0.0, options.ratio)]
    torch.set_float32_matmul_precision("high")
    for recipe, averages in zip(recipes, benchmark(Suite.read(options.suite), recipes, options.out), strict=True):
        print(recipe.describe(), averages)


if __name__ == "__main__":
    main()
