"""Pruned against unpruned on the zoo, at the published scale and each at its own best one: the figures of README.

    nice python benchmarks/tuned_on_zoo.py       # writes docs/tuned.md and docs/tuned.json, about 8 minutes

Each of the two gets the scale with the best ID average on the validation draw, from one fine grid. What is reported is
measured on the test draw, of which no sample is in the validation draw. Intervals are 95 % paired bootstraps over the
test samples, for the scales that were chosen.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from lwptv_lightning import MergeRecipe, TaskVectors, zoo
from lwptv_lightning.report import markdown_table
from lwptv_lightning.search import Candidate, SweepResult, sweep
from lwptv_lightning.zoo import zoo_module
from lwptv_lightning.zoo.demo import RULES, quiet_lightning, quiet_trainer

COMMAND = "python benchmarks/tuned_on_zoo.py"
RULE = "task_arithmetic"
RATIO = 0.5
STEP = 0.025
GRID = tuple(round(step * STEP, 3) for step in range(2, 33))
RANDOM_MASKS = 20
KINDS = {"unpruned": 0.0, "pruned": RATIO}
OVERS = {"id": "ID", "ood/near": "near OOD", "ood/far": "far OOD", "ood": "OOD"}
"""What figures are averaged over, in words."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="where to write tuned.md and tuned.json")
    parser.add_argument("--size", type=int, default=450, help="images in each set, of validation and of test")
    options = parser.parse_args()
    module = zoo_module()
    with quiet_lightning():
        curves = {at(kind, scale): MergeRecipe(RULE, scale, ratio=KINDS[kind]) for kind in KINDS for scale in GRID}
        chosen_on = zoo.loaders("validation", size=options.size, sets=zoo.ID_SETS)
        validation = sweep(quiet_trainer(), module, curves, chosen_on)
        test_sets = zoo.loaders("test", size=options.size)
        test = sweep(quiet_trainer(), module, {**others(module.vectors), **curves}, test_sets)
    best = {kind: max(GRID, key=lambda scale: validation.figures(at(kind, scale))["id/avg"]) for kind in KINDS}
    images = {name: len(loader.dataset) for name, loader in test_sets.items()}
    found = results(validation, test, best, options.size, images)
    write(found, options.out)
    print(summary(found))


def others(vectors: TaskVectors) -> dict[str, Candidate]:
    """Return what is measured besides the two curves."""
    candidates: dict[str, Candidate] = {"base": {name: vectors.base(name) for name in vectors.names}}
    for task in vectors.tasks:
        candidates[f"expert {task}"] = {name: vectors.expert(task, name) for name in vectors.names}
    for rule in RULES:
        candidates |= {rule: MergeRecipe(rule), f"{rule} pruned": MergeRecipe(rule, ratio=RATIO)}
    for seed in range(RANDOM_MASKS):
        candidates[f"random {seed}"] = MergeRecipe(RULE, score="random", ratio=RATIO, seed=seed)
    return candidates


def at(kind: str, scale: float) -> str:
    return f"{kind} x {scale:g}"


def results(
    validation: SweepResult, test: SweepResult, best: Mapping[str, float], size: int, images: Mapping[str, int]
) -> dict[str, object]:
    """Return all that is published, in percent."""
    published = MergeRecipe(RULE).effective_scale
    tuned = {kind: at(kind, best[kind]) for kind in KINDS}
    pairs = {
        "both at the published scale": (at("pruned", published), at("unpruned", published)),
        "pruned at the published scale, unpruned at its best": (at("pruned", published), tuned["unpruned"]),
        "each at its best scale": (tuned["pruned"], tuned["unpruned"]),
    }
    figures = {name: averages(test, name) for name in test.names}
    figures["experts"] = mean_of(figures, "expert ")
    figures["random masks"] = mean_of(figures, "random ")
    return {
        "command": COMMAND,
        "rule": RULE,
        "ratio": RATIO,
        "torch": torch.__version__,
        "grid": {"first": GRID[0], "last": GRID[-1], "step": STEP},
        "images": {"validation": size, "test": dict(images)},
        "published": published,
        "best": dict(best),
        "validation": {name: 100 * validation.figures(name)["id/avg"] for name in validation.names},
        "test": figures,
        "differences": {
            words: {
                "pruned": first,
                "unpruned": second,
                **{over: interval(test, first, second, over) for over in OVERS},
            }
            for words, (first, second) in pairs.items()
        },
    }


def averages(test: SweepResult, name: str) -> dict[str, float]:
    found = test.figures(name)
    return {over: 100 * found[f"{over}/avg"] for over in OVERS}


def mean_of(figures: Mapping[str, Mapping[str, float]], prefix: str) -> dict[str, float]:
    """Return mean, least and largest figure of the models whose names start so."""
    found = [row for name, row in figures.items() if name.startswith(prefix)]
    return {
        key: value
        for over in OVERS
        for values in [[row[over] for row in found]]
        for key, value in (
            (over, sum(values) / len(values)),
            (f"{over} least", min(values)),
            (f"{over} largest", max(values)),
        )
    }


def interval(test: SweepResult, first: str, second: str, over: str) -> list[float]:
    """Return the difference and the ends of its interval."""
    found = test.difference(first, second, over)
    return [100 * found.value, 100 * found.low, 100 * found.high]


def write(found: Mapping[str, object], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tuned.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "tuned.md").write_text(page(found))


def page(found: Mapping[str, object]) -> str:
    """Return docs/tuned.md."""
    grid, images, best, differences = (found[key] for key in ("grid", "images", "best", "differences"))
    test, validation, overs = found["test"], found["validation"], averaged(found)
    pairs = [
        [words, f"{row['pruned']}", f"{row['unpruned']}", *(spelled(row[over]) for over in overs)]
        for words, row in differences.items()
    ]
    curve = [
        [
            f"{scale:g}",
            *(
                f"{value:.1f}"
                for kind in KINDS
                for value in (validation[at(kind, scale)], *(test[at(kind, scale)][over] for over in overs))
            ),
        ]
        for scale in GRID
    ]
    fewer = [f"{count} of {name}" for name, count in images["test"].items() if count != images["validation"]]
    return PAGE.format(
        command=found["command"],
        rule=found["rule"],
        ratio=found["ratio"],
        size=images["validation"],
        sets=", ".join(f"{len(of_loaders(images['test'], over))} {words}" for over, words in overs.items()),
        fewer=f" ({', '.join(fewer)})" if fewer else "",
        **{f"{end}": f"{grid[end]:g}" for end in ("first", "last", "step")},
        unpruned=f"{best['unpruned']:g}",
        pruned=f"{best['pruned']:g}",
        pairs=markdown_table(["pruned minus unpruned", "pruned", "unpruned", *overs.values()], pairs),
        curve=markdown_table(
            ["scale", *(f"{kind} {what}" for kind in KINDS for what in ("validation ID", *overs.values()))], curve
        ),
    )


def of_loaders(images: Mapping[str, int], over: str) -> list[str]:
    """Return the loaders that an average is over."""
    return [loader for loader in images if loader.startswith(f"{over}/")]


def averaged(found: Mapping[str, object]) -> dict[str, str]:
    """Return what some results are averaged over, in words."""
    return {over: words for over, words in OVERS.items() if over in found["test"]["base"]}


def spelled(difference: list[float]) -> str:
    value, low, high = (round(points, 1) + 0.0 for points in difference)  # no zero with a minus
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def summary(found: Mapping[str, object]) -> str:
    """Return the table of README."""
    test, best, published, overs = found["test"], found["best"], f"{found['published']:g}", averaged(found)
    at_published, _, tuned = found["differences"].values()

    def figures(name: str) -> list[str]:
        return [f"{test[name][over]:.1f}" for over in overs]

    def range_of(over: str) -> str:
        mean, least, largest = (test["random masks"][f"{over}{end}"] for end in ("", " least", " largest"))
        return f"{mean:.1f} ({least:.1f} … {largest:.1f})"

    rows = [
        ["pre-trained base", *figures("base")],
        ["each expert alone (mean of five)", *figures("experts")],
        [f"task arithmetic, scale {published}", *figures(RULE)],
        [f"**task arithmetic, scale {published}, half of the layers pruned**", *figures(f"{RULE} pruned")],
        [f"pruned minus unpruned, both at {published}", *(spelled(at_published[over]) for over in overs)],
        [f"*control:* half of the layers pruned at random, mean of {RANDOM_MASKS}", *map(range_of, overs)],
        [f"*control:* unpruned at its best scale, {best['unpruned']:g}", *figures(at("unpruned", best["unpruned"]))],
        [f"half of the layers pruned at its best scale, {best['pruned']:g}", *figures(at("pruned", best["pruned"]))],
        ["pruned minus unpruned, each at its best scale", *(spelled(tuned[over]) for over in overs)],
    ]
    for rule, name in {
        "ties": "TIES",
        "dare": "DARE",
        "simple_average": "simple average",
        "consensus_ta": "consensus TA",
    }.items():
        pairs = zip(figures(rule), figures(f"{rule} pruned"), strict=True)
        rows.append([f"{name} / pruned", *(f"{plain} / {pruned}" for plain, pruned in pairs)])
    return markdown_table(["zoo, accuracy in %", *(f"{words} average" for words in overs.values())], rows)


PAGE = """# Pruned against unpruned, tuned against tuned

Made by `{command}`. Accuracy in %, averaged over sets of the zoo ({sets}), {size} images in
each{fewer}. The rule is `{rule}`; "pruned" drops the {ratio:.0%} of layers with the lowest `mean_abs` from each task
vector before it.

Each of the two is tuned alike: its best scale is the one with the best ID average on a validation draw of {size} images
a set, on a grid from {first} to {last} in steps of {step}. It is {unpruned} unpruned and {pruned} pruned. No validation
sample is among the test samples, and no OOD set is used to choose. Intervals are 95 % paired bootstraps over the test
samples, for the scales that were chosen.

{pairs}

The whole grid; the scale is that of the merged task vector:

{curve}
"""


if __name__ == "__main__":
    main()
