"""Every merging rule on the zoo, unpruned and pruned, at its published and at its best coefficient.

    python benchmarks/rules_on_zoo.py            # writes docs/benchmark.md and docs/benchmark.csv, about 15 minutes

The best coefficient is the one with the best ID average on the validation draw. Figures are means over three disjoint
parts of the test draw, with the largest distance of a part from the mean. `nuslerp` merges the first two tasks, every
other rule all five.
"""

import argparse
import csv
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from rich.progress import track
from torch.utils.data import DataLoader

from lwptv_lightning import CollectDataStatistics, MergeModule, MergeRecipe, TaskVectors, merge, zoo
from lwptv_lightning.report import markdown_table
from lwptv_lightning.rules import RULES, DataStatistics
from lwptv_lightning.search import SweepResult, sweep
from lwptv_lightning.zoo import zoo_module
from lwptv_lightning.zoo.demo import quiet_lightning, quiet_trainer

RATIO = 0.5
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # of the published coefficient
PARTS = 3
OVERS = {"id": "ID", "ood/near": "near OOD", "ood/far": "far OOD"}
"""What figures are averaged over, in words."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="where to write benchmark.md and benchmark.csv")
    parser.add_argument("--size", type=int, default=450, help="test images in each set")
    parser.add_argument("--samples", type=int, default=128, help="training images of each task for Fisher and Gram")
    parser.add_argument("--rules", nargs="+", choices=sorted(RULES), help="measure only these anew")
    options = parser.parse_args()

    rows = [] if options.rules is None else read(options.out, options.rules)
    module = zoo_module()
    statistics = collect_statistics(module, options.samples)
    test_sets = zoo.loaders("test", size=options.size)
    validation_sets = zoo.loaders("validation", size=150, sets=zoo.ID_SETS)
    with quiet_lightning():
        for name in track(options.rules or sorted(RULES), description="rules"):
            for ratio in (0.0, RATIO):
                rows.append(measure(module, MergeRecipe(name, ratio=ratio), statistics, test_sets, validation_sets))
    write(sorted(rows, key=lambda row: (row["rule"], row["pruned"])), options)


def collect_statistics(module: MergeModule, samples: int) -> dict[str, DataStatistics]:
    loaders = zoo.loaders("train", size=samples, sets=zoo.ID_SETS)
    collected = {}
    for kind in ("fisher", "gram"):
        collector = CollectDataStatistics(kind, samples=samples)
        quiet_trainer(callbacks=[collector]).validate(module, loaders, verbose=False)
        collected[kind] = collector.statistics
    return collected


def measure(
    module: MergeModule,
    recipe: MergeRecipe,
    statistics: Mapping[str, DataStatistics],
    test_sets: Mapping[str, DataLoader],
    validation_sets: Mapping[str, DataLoader],
) -> dict[str, object]:
    vectors = module.vectors.select(module.vectors.tasks[:2]) if recipe.rule.name == "nuslerp" else module.vectors
    began = time.perf_counter()
    merged = merge(vectors, recipe, module.layers(), statistics=statistics.get(recipe.rule.needs))
    seconds = time.perf_counter() - began

    def candidates(factors: Iterable[float]) -> dict[str, dict[str, torch.Tensor]]:
        return {f"{factor}": scaled(vectors, merged, factor) for factor in factors}

    validation = sweep(quiet_trainer(), module, candidates(FACTORS), validation_sets)
    best = max(FACTORS, key=lambda factor: validation.figures(f"{factor}")["id/avg"])
    test = sweep(quiet_trainer(), module, candidates({1.0, best}), test_sets)
    row = {"rule": recipe.rule.name, "pruned": recipe.ratio, "seconds": seconds, "best": best * recipe.effective_scale}
    row["published"] = recipe.effective_scale
    for label, factor in (("published", 1.0), ("best", best)):
        for over in OVERS:
            row[f"{over} {label}"], row[f"{over} {label} spread"] = over_parts(test, f"{factor}", over)
    return row


def scaled(vectors: TaskVectors, merged: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    """Return the model whose merged task vector is ``factor`` times as long."""
    return {name: torch.lerp(vectors.base(name).float(), merged[name].float(), factor) for name in vectors.names}


def over_parts(test: SweepResult, name: str, over: str) -> tuple[float, float]:
    """Return the mean over disjoint parts of the test draw and the largest distance from it, in percent."""
    averages = torch.zeros(PARTS, dtype=torch.float64)
    loaders = [loader for loader in test.outcomes if loader.startswith(f"{over}/")]
    for loader in loaders:
        outcomes = test.correct(name)[loader].double()
        # Every PARTS-th sample, so that each part has all classes.
        averages += torch.stack([outcomes[part::PARTS].mean() for part in range(PARTS)]) / len(loaders)
    return 100 * float(averages.mean()), 100 * float((averages - averages.mean()).abs().max())


def read(folder: Path, anew: Iterable[str]) -> list[dict[str, object]]:
    """Return the rows that are there, but for those of rules that are measured anew."""
    with (folder / "benchmark.csv").open(newline="") as file:
        found = [
            {column: text if column == "rule" else float(text) for column, text in row.items()}
            for row in csv.DictReader(file)
        ]
    if absent := [over for over in OVERS if not all(f"{over} best" in row for row in found)]:
        raise SystemExit(
            f"{folder / 'benchmark.csv'} has no column of {absent[0]}: measure all rules, without --rules."
        )
    return [row for row in found if row["rule"] not in anew]


def write(rows: list[dict[str, object]], options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "benchmark.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    headings = ["rule", "pruned", "scale", *OVERS.values(), "best scale", *OVERS.values(), "seconds"]
    lines = [
        [
            f"`{row['rule']}`",
            f"{row['pruned']:.0%}",
            f"{row['published']:g}",
            *(f"{row[f'{over} published']:.1f} ± {row[f'{over} published spread']:.1f}" for over in OVERS),
            f"{row['best']:g}",
            *(f"{row[f'{over} best']:.1f} ± {row[f'{over} best spread']:.1f}" for over in OVERS),
            f"{row['seconds']:.2f}",
        ]
        for row in rows
    ]
    text = PAGE.format(table=markdown_table(headings, lines), size=options.size, parts=PARTS, samples=options.samples)
    (options.out / "benchmark.md").write_text(text)


PAGE = """# Every rule on the zoo

Made by `python benchmarks/rules_on_zoo.py`. Accuracy in %, averaged over the five ID, the five near OOD and the five
far OOD sets of the zoo, {size} images in each (300 of handwriting); the mean over {parts} disjoint parts of them ± the
largest distance of a part from it. "pruned" is the share of layers that `mean_abs` drops from each task vector before
the rule. The first scale is the rule's published one; the best one has the best ID average on a separate validation
draw, among 0.25 to 3 times the published. `nuslerp` merges two tasks, the others five; Fisher information and Gram
matrices come from {samples} training images of each task. Seconds are those of one merge in one thread of a busy
machine, saliency included.

A rule's published scale was chosen for other models, often much larger ones, so compare rules at their best scale. And
compare pruned with unpruned at the best scale of each: what pruning gains at a fixed scale, a smaller scale often gives
as well. The scales here are few: [study.md](study.md) compares methods on fine grids, with intervals, on several
zoos.

Of the zoo's sets, merging lowers the average of the far ones, of unseen classes in unseen styles, and raises that of
the near ones, of unseen classes in the tasks' styles. Where it raises the average, as on the usual CLIP suites too,
pruning towards the base may lower it:
[examples/clip_benchmark](../examples/clip_benchmark/README.md#what-to-expect-of-pruning-here). Measure it on your data.

{table}
"""

if __name__ == "__main__":
    main()
