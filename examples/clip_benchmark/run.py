"""Measure CLIP's base, experts and merged models over merged, held-out and corrupted sets, beside what is published.

python examples/clip_benchmark/run.py examples/clip_benchmark/suite_8.yaml

Needs a network, ``pip install "lwptv-lightning[clip]" datasets`` and some 10 GB of disk for the eight tasks.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from lwptv_lightning import CollectDataStatistics, EvaluationSuite, MergeModule, MergeRecipe, TaskVectors
from lwptv_lightning.report import ResultRow, ResultTable
from lwptv_lightning.search import SweepResult, sweep

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from corruptions import Corrupted  # noqa: E402
from heads import cached_heads, open_clip_encoder  # noqa: E402
from published import RECIPES, Reference, comparison  # noqa: E402
from rows import Results, candidates_of, named, rows_of, unmerged  # noqa: E402

TASKS = yaml.safe_load((HERE / "tasks.yaml").read_text(encoding="utf-8"))
SAMPLES = 256
"""Training images of each task on which rules that need data know more of it."""
NOTES = (
    "Accuracy in %, averaged over the merged tasks and over the held-out ones; corrupted images are in neither. The "
    "best smaller coefficient is chosen on every other image of the merged tasks, and measured on all. Where merging "
    "raises the unseen average above the base's, pruning towards the base may lower it."
)


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
    """The images of a task, from the ``datasets`` library, ready for the model: test images, or training ones."""

    def __init__(self, task: str, transform: Callable[[Any], Tensor], training: bool = False) -> None:
        from datasets import load_dataset

        about = TASKS[task]
        split = "train" if training else about.get("split", "test")
        self.rows = load_dataset(about["data"], about.get("configuration"), split=split)
        self.image, self.label = about.get("image", "image"), about.get("label", "label")
        self.transform = transform
        self.classes = about.get("classes") or self.rows.features[self.label].names

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.rows[index]
        return self.transform(row[self.image].convert("RGB")), int(row[self.label])


@dataclass(frozen=True)
class Benchmark:
    """A suite with its models and sets, which are opened when they are needed.

    Args:
        suite: Their names.
        folder: Where the report and the cached heads go.
        load_images: Task name, image transform and, where wanted, ``training=True``, to a data set with ``classes``.
        make_text_encoder: Returns an open_clip model and its tokenizer.
        trainer_options: For Lightning's Trainer.
    """

    suite: Suite
    folder: Path
    load_images: Callable[..., Dataset]
    make_text_encoder: Callable[[], tuple[nn.Module, Any]] | None
    trainer_options: dict[str, Any]

    @cached_property
    def model(self) -> nn.Module:
        return timm.create_model(self.suite.model, pretrained=False, **self.suite.model_options)

    @cached_property
    def module(self) -> MergeModule:
        suite = self.suite
        experts = {task: suite.experts.format(task=task) for task in suite.merged}
        # Only the encoders were tuned: the projection is CLIP's own.
        vectors = TaskVectors.open(suite.base, experts, model=self.model, exclude=("head.*",))
        return MergeModule(self.model, vectors, heads=self.heads)

    @cached_property
    def transform(self) -> Callable[[Any], Tensor]:
        return timm.data.create_transform(**timm.data.resolve_model_data_config(self.model), is_training=False)

    @cached_property
    def images(self) -> dict[str, Dataset]:
        return {task: self.load_images(task, self.transform) for task in (*self.suite.merged, *self.suite.held_out)}

    @cached_property
    def corrupted(self) -> dict[str, Dataset]:
        """The images of the first merged task, corrupted."""
        task = self.suite.merged[0]
        return {f"{task}-{kind}": Corrupted(self.images[task], kind) for kind in self.suite.corruptions}

    @cached_property
    def heads(self) -> dict[str, nn.Module]:
        encoder = self.make_text_encoder or (lambda: open_clip_encoder(**self.suite.text_encoder))
        classes = {task: data.classes for task, data in self.images.items()}
        sentences = {task: about["sentences"] for task, about in TASKS.items() if "sentences" in about}
        heads = dict(cached_heads(self.folder / "heads", classes, encoder, sentences))
        return heads | dict.fromkeys(self.corrupted, heads[self.suite.merged[0]])

    @cached_property
    def loaders(self) -> dict[str, Any]:
        merged, held_out = ({task: self.images[task] for task in of} for of in (self.suite.merged, self.suite.held_out))
        groups = {"held_out": held_out, "corrupted": self.corrupted}
        ood = {f"{group}/{name}": data for group, sets in groups.items() for name, data in sets.items()}
        return EvaluationSuite(id=merged, ood=ood).loaders

    def trainer(self, *callbacks: Any) -> Trainer:
        return Trainer(logger=False, callbacks=list(callbacks), **self.trainer_options)

    def statistics(self, kind: str) -> dict[str, dict[str, Tensor]]:
        """Collect Gram matrices or Fisher information, each task's of its own model on its own training images."""
        sets = {}
        for task in self.suite.merged:
            data = self.load_images(task, self.transform, training=True)
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
            sets[task] = Subset(data, order[:SAMPLES].tolist())
        collect = CollectDataStatistics(kind, samples=SAMPLES)
        self.trainer(collect).validate(self.module, EvaluationSuite(id=sets, batch_size=32).loaders, verbose=False)
        return collect.statistics

    def measure(self, candidates: dict[str, Any], needs: str = "") -> SweepResult:
        """Measure models of rules that need nothing else, or all the same of data."""
        data = {"data": self.statistics(needs)} if needs else {}
        return sweep(self.trainer(), self.module, candidates, self.loaders, at_once=4, **data)

    def averages(self, figures: dict[str, float]) -> tuple[float, float]:
        """Return the averages over the merged and over the held-out tasks, in %."""
        return 100 * figures["id/avg"], 100 * figures["ood/held_out/avg"]


def benchmark(
    suite: Suite,
    recipes: list[MergeRecipe],
    folder: Path,
    load_images: Callable[..., Dataset] = HubImages,
    make_text_encoder: Callable[[], tuple[nn.Module, Any]] | None = None,
    trainer_options: dict[str, Any] | None = None,
) -> list[dict[str, float]]:
    """Measure base, experts and each recipe's merged model, those that prune beside their controls; write and print it.

    Args:
        suite: Models and sets.
        recipes: What to compare.
        folder: Where the report and the cached heads go.
        load_images: As for `Benchmark`, like those that follow.
        make_text_encoder: Returns an open_clip model and its tokenizer.
        trainer_options: For Lightning's Trainer.

    Returns:
        Each recipe's averages over the ID and over the OOD sets, corrupted ones among them.
    """
    bench = Benchmark(suite, folder, load_images, make_text_encoder, trainer_options or {})
    candidates: dict[str, dict[str, Any]] = {"": dict(unmerged(bench.module.vectors))}
    for recipe in recipes:
        candidates.setdefault(recipe.rule.needs, {}).update(candidates_of(recipe))
    results = Results([bench.measure(some, needs) for needs, some in candidates.items()])
    rows = rows_of(recipes, suite.merged, results)
    reference = Reference.of(suite.model, suite.merged, suite.held_out)
    averages = [(row.name, row.published, bench.averages(row.figures)) for row in rows]
    title = f"# {len(suite.merged)} merged tasks, {' and '.join(suite.held_out)} held out"
    text = f"{title}\n\n{comparison(averages, reference)}\n\n{NOTES}\n"
    table = ResultTable([ResultRow(row.name, row.figures) for row in rows])
    (folder / "report.md").write_text(f"{text}\n{table.markdown()}\n", encoding="utf-8")
    (folder / "results.csv").write_text(table.csv(), encoding="utf-8")
    print(text)
    figures = [results.figures(named(recipe)) for recipe in recipes]
    return [{name: row[name] for name in ("id/avg", "ood/avg")} for row in figures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", type=Path)
    parser.add_argument("--rule", action="append", help="by default task_arithmetic, ties and regmean, as published")
    parser.add_argument("--scale", type=float, help="another coefficient than the published one")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("clip_benchmark"))
    options = parser.parse_args()
    recipes = []
    for rule in options.rule or ("task_arithmetic", "ties", "regmean"):
        recipe = RECIPES.get(rule) or MergeRecipe(rule)
        recipe = recipe if options.scale is None else recipe.replace(scale=options.scale)
        recipes += [recipe, recipe.replace(ratio=options.ratio)]
    torch.set_float32_matmul_precision("high")
    benchmark(Suite.read(options.suite), recipes, options.out)


if __name__ == "__main__":
    main()
