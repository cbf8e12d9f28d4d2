"""``lwptv demo``: the zoo's experts merged by several rules, unpruned and pruned, with the controls beside them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console

from lwptv_lightning.evaluation import MergeModule
from lwptv_lightning.merging import plan_pruning, save_merged
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import printable, printable_name
from lwptv_lightning.report import (
    PRUNED_SUFFIX,
    RECIPE,
    REPORT,
    RESULTS,
    ReportFolder,
    ResultRow,
    ResultTable,
    markdown_table,
    plot_id_ood,
    plot_saliency,
    print_table,
    print_text,
    room_of,
)
from lwptv_lightning.search import Candidate, SweepResult, best, choices, sweep
from lwptv_lightning.task_vectors import TaskVectors
from lwptv_lightning.zoo.builders import zoo_module
from lwptv_lightning.zoo.data import loaders
from lwptv_lightning.zoo.domains import ID_SETS

RULES = ("simple_average", "task_arithmetic", "ties", "dare", "consensus_ta")
RATIO = 0.5
RANDOM_MASKS = 20
COEFFICIENTS = tuple(step / 10 for step in range(1, 11))
SIZE = 150
_TITLE = "# Merging the zoo's experts"
_OVER = {"id": "ID", "ood/near": "near OOD", "ood/far": "far OOD"}
"""What figures are averaged over, in words."""
_FILES = (REPORT, RESULTS, RECIPE, "merged.safetensors", "saliency.png", "id_ood.png")


@dataclass(frozen=True)
class Demo:
    """What `run_demo` measured.

    Attributes:
        table: The rows of the report.
        test: Every candidate on the test sets.
        best: Rule to the coefficient with the best ID average on the validation draw.
        chosen: Row to what chooses it on the validation draw, of the coefficients of each such rule.
    """

    table: ResultTable
    test: SweepResult
    best: Mapping[str, float]
    chosen: Mapping[str, str]


def run_demo(
    folder: Path,
    *,
    devices: int = 1,
    full: bool = False,
    size: int = SIZE,
    console: Console | None = None,
    overwrite: bool = False,
) -> Demo:
    """Merge the zoo's experts, validate over ID and OOD sets, write the report's files and print the averages.

    Args:
        folder: Where to write ``report.md``, ``results.csv``, ``saliency.png``, ``id_ood.png``, ``recipe.json`` and
            ``merged.safetensors``, each whole or not at all; those of an earlier demo are replaced.
        devices: How many processes share the evaluation.
        full: Random masks and the sweep over the coefficient for every rule, not for task arithmetic alone.
        size: Images in each test set.
        console: Where to print; standard output by default.
        overwrite: Whether to write also to a folder that holds other files, and to replace those of the same names.

    Returns:
        The figures.

    Raises:
        FileExistsError: The folder holds other files, and ``overwrite`` is false; before anything is evaluated.
        OSError: Nothing can be written there.
    """
    files = ReportFolder(Path(folder), _TITLE, _FILES, overwrite=overwrite, alone=True)
    files.require_own()
    module = zoo_module()
    controlled = RULES if full else ("task_arithmetic",)
    with quiet_lightning():
        trainer = quiet_trainer(devices)
        test = sweep(trainer, module, _candidates(module.vectors, controlled), loaders("test", size=size))
        coefficients = {_at(rule, c): MergeRecipe(rule, c) for rule in controlled for c in COEFFICIENTS}
        drawn = loaders("validation", size=max(size, 2), sets=ID_SETS)  # a standard error takes two
        validation = sweep(trainer, module, coefficients, drawn)
    of_rule = {rule: {_at(rule, coefficient): coefficient for coefficient in COEFFICIENTS} for rule in controlled}
    tuned = {rule: own[best(validation, names=own)] for rule, own in of_rule.items()}
    chosen = {name: note for own in of_rule.values() for name, note in choices(validation, own).items()}
    demo = Demo(_table(module.vectors, test, controlled, chosen), test, tuned, chosen)
    _publish(demo, module, Path(folder), files, console or Console())
    return demo


def _candidates(vectors: TaskVectors, controlled: Iterable[str]) -> dict[str, Candidate]:
    candidates: dict[str, Candidate] = {"base": {name: vectors.base(name) for name in vectors.names}}
    for task in vectors.tasks:
        candidates[f"expert {task}"] = {name: vectors.expert(task, name) for name in vectors.names}
    for rule in RULES:
        candidates[rule] = MergeRecipe(rule)
        candidates[rule + PRUNED_SUFFIX] = MergeRecipe(rule, ratio=RATIO)
    candidates[_at("task_arithmetic", 0.5) + PRUNED_SUFFIX] = MergeRecipe("task_arithmetic", 0.5, ratio=RATIO)
    for rule in controlled:
        for seed in range(RANDOM_MASKS):
            candidates[_random(rule, seed)] = MergeRecipe(rule, score="random", ratio=RATIO, seed=seed)
        for coefficient in COEFFICIENTS:
            candidates[_at(rule, coefficient)] = MergeRecipe(rule, coefficient)
    return candidates


def _table(
    vectors: TaskVectors, test: SweepResult, controlled: Iterable[str], chosen: Mapping[str, str]
) -> ResultTable:
    rows = [ResultRow("base", test.figures("base"))]
    rows += [ResultRow(f"expert {task}", test.figures(f"expert {task}")) for task in vectors.tasks]
    for rule in RULES:
        rows += [ResultRow(name, test.figures(name), test.seconds[name]) for name in (rule, rule + PRUNED_SUFFIX)]
        if rule in controlled:
            rows.append(_random_masks_row(rule, test))
            for coefficient in COEFFICIENTS:
                name = _at(rule, coefficient)
                rows.append(ResultRow(name, test.figures(name), test.seconds[name], chosen.get(name, "")))
    name = _at("task_arithmetic", 0.5) + PRUNED_SUFFIX
    rows.append(ResultRow(name, test.figures(name), test.seconds[name]))
    return ResultTable(rows)


def _random_masks_row(rule: str, test: SweepResult) -> ResultRow:
    draws = [test.figures(_random(rule, seed)) for seed in range(RANDOM_MASKS)]
    mean = {name: sum(draw[name] for draw in draws) / len(draws) for name in draws[0]}
    ranges = [
        f"{words} {100 * min(values):.1f} … {100 * max(values):.1f}"
        for over, words in _OVER.items()
        if (values := [draw[f"{over}/avg"] for draw in draws])
    ]
    seconds = sum(test.seconds[_random(rule, seed)] for seed in range(RANDOM_MASKS)) / RANDOM_MASKS
    return ResultRow(f"{rule}, mean of {RANDOM_MASKS} random masks", mean, seconds, ", ".join(ranges))


def _differences(test: SweepResult) -> list[list[str]]:
    pairs = [(rule + PRUNED_SUFFIX, rule) for rule in RULES]
    pairs.append((_at("task_arithmetic", 0.5) + PRUNED_SUFFIX, _at("task_arithmetic", 0.5)))
    return [[name, *(str(test.difference(name, other, over)) for over in _OVER)] for name, other in pairs]


@rank_zero_only
def _publish(demo: Demo, module: MergeModule, folder: Path, files: ReportFolder, console: Console) -> None:
    differences = markdown_table(["pruned minus unpruned", *_OVER.values()], _differences(demo.test))
    with files.writing() as made:
        _write(demo, module, differences, made)
        written = sorted(printable_name(path.name) for path in made.iterdir() if path.name in _FILES)
    title = "Accuracy in %, averages over the ID, the near OOD, the far OOD and all OOD sets"
    print_table(demo.table.of_averages().rich(title, width=room_of(console)), console)
    print_text(_CHOSEN, console)
    print_text(f"Pruned minus unpruned, in points, with 95 % paired bootstrap intervals:\n{differences}", console)
    print_text(f"Wrote {', '.join(written)} to {printable(folder.resolve())}", console)


def _write(demo: Demo, module: MergeModule, differences: str, folder: Path) -> None:
    recipe = MergeRecipe("task_arithmetic", ratio=RATIO)
    layers = module.layers()
    tables = {"table": demo.table.markdown(), "differences": differences}
    report = _REPORT.format(title=_TITLE, chosen=_CHOSEN, ratio=RATIO, **tables)
    (folder / REPORT).write_text(report, encoding="utf-8")
    (folder / RESULTS).write_text(demo.table.csv(), encoding="utf-8")
    (folder / RECIPE).write_text(recipe.to_json() + "\n", encoding="utf-8")
    save_merged(module.vectors, recipe, folder / "merged.safetensors", layers)
    plot_saliency(plan_pruning(module.vectors, recipe, layers), folder / "saliency.png")
    by_name = {row.name: row for row in demo.table.rows}
    plot_id_ood(
        [by_name["base"], *(by_name[name] for rule in RULES for name in (rule, rule + PRUNED_SUFFIX))],
        folder / "id_ood.png",
        curve=[by_name[_at("task_arithmetic", coefficient)] for coefficient in COEFFICIENTS],
        cloud=[
            ResultRow("random", demo.test.figures(_random("task_arithmetic", seed))) for seed in range(RANDOM_MASKS)
        ],
    )


def _at(rule: str, coefficient: float) -> str:
    return f"{rule} x {coefficient:g}"


def _random(rule: str, seed: int) -> str:
    return f"{rule}, random mask {seed}"


def quiet_trainer(devices: int = 1, **options: Any) -> Trainer:
    """Return a trainer that prints and writes nothing.

    Args:
        devices: How many processes share the evaluation; several run on the CPU.
        options: Further arguments of ``Trainer``.
    """
    return Trainer(
        accelerator="cpu" if devices > 1 else "auto",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence what Lightning says of devices and workers, which says nothing here."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_CHOSEN = """\
Notes name what chooses a coefficient on a validation draw of the ID sets: `best` takes the highest
average, `one_standard_error` the smallest change of the base among those within one standard error
of it."""
_REPORT = """{title}

Accuracy in %. "pruned" drops the {ratio:.0%} of layers with the lowest `mean_abs` of each task vector before the rule.
ID sets are of the tasks' classes and styles, near OOD sets of other classes in the same styles, far OOD sets of other
classes in other styles. The base does well on the far ones, where merging can lose much. On the near ones it can gain.

{table}

{chosen}

## Pruned minus unpruned, in points, with 95 % paired bootstrap intervals

{differences}

Two controls belong to every such figure. Random masks say how much of a change comes from pruning anything at all.
The unpruned sweep over the scaling coefficient says how much of it a smaller coefficient gives as well.

![Saliency of each layer of each task vector](saliency.png)
![OOD over ID accuracy](id_ood.png)
"""
