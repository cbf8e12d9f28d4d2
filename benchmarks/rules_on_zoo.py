"""Every merging rule and modifier on the zoo, unpruned and pruned, tuned on a validation draw and compared in pairs.

    python benchmarks/rules_on_zoo.py --store DIR                  # writes docs/benchmark.md and docs/benchmark.csv
    python benchmarks/rules_on_zoo.py --store DIR --rules ties     # measures one rule anew, with its modifiers
    python benchmarks/rules_on_zoo.py --small --rules ties --out DIR

Hyper-parameters and coefficients are chosen by the ID average on the validation draw; test images are read once all
choices are made. What was measured is kept in the store, so that a run that was stopped goes on where it was. After a
change of a rule's code name another store.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from zoo_lines import BASE, FINER, IDENTITY, SIZES, Line, Lines, read, renewed, write
from zoo_page import write_page
from zoo_rows import REFERENCE, Row, all_rules, rows, words_of
from zoo_subject import Subject
from zoo_tuning import Grid, Tuned, refine, tune

from lwptv_lightning import MergeRecipe
from lwptv_lightning.search import SweepResult
from lwptv_lightning.zoo.demo import quiet_lightning

SMALL = {"size": 6, "validation": 4, "samples": 2, "draws": 20, "merges": 1}
SMALL_GRID = Grid(coarse=(-8, 0), reaches=(), finer=(-1,))


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    kept = [] if options.rules is None else read(options.out, _sizes(options))
    began = time.process_time()
    with quiet_lightning():
        found = measured(options.rules or all_rules(), options)
    lines = renewed(kept, found, options.rules or ())
    write(lines, options.out)
    write_page(lines, options.out)
    print(f"{time.process_time() - began:.0f} s of the processor", flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="where to write benchmark.md and benchmark.csv")
    parser.add_argument("--store", type=Path, help="a folder to keep what was measured in")
    parser.add_argument("--size", type=int, default=300, help="test images in each set")
    parser.add_argument("--validation", type=int, default=200, help="validation images in each ID set")
    parser.add_argument("--samples", type=int, default=128, help="training images of each task for Fisher and Gram")
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--merges", type=int, default=3, help="how often each merge is timed")
    parser.add_argument("--rules", nargs="+", choices=all_rules(), help="measure only these anew, with their modifiers")
    parser.add_argument("--small", action="store_true", help="few images and coefficients, to see that it runs")
    options = parser.parse_args(arguments)
    if options.small:
        vars(options).update({name: min(vars(options)[name], few) for name, few in SMALL.items()})
    return options


@dataclass(frozen=True)
class Choices:
    """What was chosen on the validation draw, and what a finer grid would have chosen."""

    subject: Subject
    tuned: Mapping[Row, Tuned]
    finer: Mapping[Row, Tuned]

    @classmethod
    def of(cls, subject: Subject, wanted: Sequence[Row], grid: Grid) -> Choices:
        """Tune rules, then their modifiers beside what was chosen for the rules."""
        tuned = tune(subject.validate, [row for row in wanted if not row.modifier], grid)
        alone = {row: tuned[row.alone] for row in wanted if row.modifier}
        modified = [row.beside(each.recipe, each.chosen.settings) for row, each in alone.items()]
        tuned |= tune(subject.validate, modified, grid)
        finer = refine(subject.validate, {row: each for row, each in tuned.items() if not row.ratio}, grid)
        return cls(subject, tuned, finer)

    def changed(self, row: Row) -> bool:
        """Tell whether a finer grid was tried, and has another choice."""
        return row in self.finer and self.finer[row].chosen != self.tuned[row].chosen

    def test(self) -> SweepResult:
        """Evaluate all that was chosen, and the base, on the test draw."""
        recipes = {BASE: MergeRecipe(scale=0.0)}
        recipes |= {row.name: each.recipe for row, each in self.tuned.items()}
        recipes |= {_finer(row): each.recipe for row, each in self.finer.items() if self.changed(row)}
        return self.subject.test(recipes)


def measured(rules: Iterable[str], options: argparse.Namespace) -> list[Line]:
    """Return the lines of the table for some rules."""
    grid = SMALL_GRID if options.small else Grid()
    asked = list(rows(rules))
    wanted = list(dict.fromkeys([*(row.reference for row in asked), *asked]))
    groups = {
        tasks: [row for row in wanted if row.tasks == tasks] for tasks in dict.fromkeys(row.tasks for row in wanted)
    }
    chosen = [Choices.of(Subject(tasks, options), group, grid) for tasks, group in groups.items()]
    # All choices are made; no test image was read so far.
    found = []
    for choices in chosen:
        lines = Lines(choices.test(), options.draws)
        reference = Row(REFERENCE, tasks=len(choices.subject.tasks))
        found.append({**_identity(replace(reference, rule=BASE)), **lines.figures(BASE, reference.name)})
        found += [_line(row, choices, lines) for row in choices.tuned if row in asked]
    return [{**line, **_sizes(options)} for line in found]


def _sizes(options: argparse.Namespace) -> dict[str, str]:
    return dict(zip(SIZES, map(str, (options.size, options.validation, options.samples)), strict=True))


def _identity(row: Row) -> dict[str, str]:
    values = (row.rule, row.form, row.modifier, f"{row.ratio:g}", str(row.tasks))
    return dict(zip(IDENTITY, values, strict=True))


def _line(row: Row, choices: Choices, lines: Lines) -> Line:
    tuned = choices.tuned[row]
    line = _identity(row) | _choice("", tuned) | lines.figures(row.name, row.reference.name, row.plain.name)
    if row in choices.finer:
        other = _finer(row) if choices.changed(row) else row.name
        line |= _choice("finer ", choices.finer[row]) | lines.compared(FINER, other, row.name)
        line["seconds"] = f"{choices.subject.seconds(tuned.recipe):.4g}"
    return line


def _choice(prefix: str, tuned: Tuned) -> Line:
    point = tuned.chosen
    return {
        f"{prefix}settings": words_of(point.settings),
        f"{prefix}scale": f"{tuned.row.scale_of(tuned.recipe):.4g}",
        f"{prefix}validation id": f"{100 * tuned.averages[point]:.3f}",
    }


def _finer(row: Row) -> str:
    return f"{row.name}, finer"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
