"""docs/benchmark.md, made of the lines of docs/benchmark.csv."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, quantiles

from zoo_lines import BASE, COMPARED, DOMAINS, FINER, Line

from lwptv_lightning.report import markdown_table

REFERENCE, OWN = COMPARED
SHORT = {REFERENCE: "t.a.", OWN: "own"}
CLIP = {
    "task arithmetic": (70.8, 65.3, 60.5),
    "TSV-M": (85.9, 80.1, 77.1),
    "Iso-CTS": (86.2, 81.7, 78.1),
    "DC-Merge": (87.1, 82.5, 80.6),
}


def write_page(lines: Sequence[Line], folder: Path) -> None:
    (folder / "benchmark.md").write_text(page(lines))


def page(lines: Sequence[Line]) -> str:
    """Return the page."""
    merges = [line for line in lines if line["rule"] != BASE and line["tasks"] == "5"]
    base = [line for line in lines if line["rule"] == BASE and line["tasks"] == "5"]
    rules = [line for line in merges if not line["modifier"] and _is_unpruned(line)]
    pruned = [line for line in merges if not line["modifier"] and not _is_unpruned(line)]
    modified = [line for line in merges if line["modifier"]]
    return PAGE.format(
        test=lines[0]["test images"],
        validation=lines[0]["validation images"],
        samples=lines[0]["samples"],
        spread=_spread(rules),
        same=_same(rules),
        rules=_table([*base, *rules], [REFERENCE], seconds=True),
        signs_of_rules=_signs(rules, REFERENCE),
        pruned=_table(pruned, COMPARED),
        signs_of_pruned=_signs(pruned, OWN),
        modified=_table(modified, COMPARED, modifier=True, seconds=True),
        signs_of_modified=_signs(modified, OWN),
        two=_table([line for line in lines if line["tasks"] != "5"], COMPARED, seconds=True),
        finer=_finer([line for line in lines if line.get("finer scale")]),
        clip=markdown_table(
            ["method", "8 tasks", "14 tasks", "20 tasks"], [[name, *map(str, row)] for name, row in CLIP.items()]
        ),
    )


def _table(lines: Iterable[Line], compared: Sequence[str], *, modifier: bool = False, seconds: bool = False) -> str:
    pruned = modifier or (len(compared) > 1 and seconds)
    headings = ["rule", *["with"] * modifier, *["pruned"] * pruned, "scale", *DOMAINS.values()]
    headings += [f"{words} - {SHORT[what]}" for what in compared for words in DOMAINS.values()] + ["s"] * seconds
    return markdown_table(headings, [list(_cells(line, compared, modifier, pruned, seconds)) for line in lines])


def _cells(line: Line, compared: Iterable[str], modifier: bool, pruned: bool, seconds: bool) -> Iterator[str]:
    yield _rule(line)
    if modifier:
        yield line["modifier"]
    if pruned:
        yield f"{float(line['pruned']):.0%}"
    yield ", ".join(filter(None, (line.get("scale", ""), line.get("settings", "")))) or "-"
    yield from (f"{float(line[domain]):.1f}" for domain in DOMAINS)
    yield from (_difference(line, f"{domain} {what}") for what in compared for domain in DOMAINS)
    if seconds:
        yield f"{float(line['seconds']):.2f}" if line.get("seconds") else "-"


def _rule(line: Line) -> str:
    form = f" ({line['form']})" if line["form"] else ""
    return line["rule"] if line["rule"] == BASE else f"`{line['rule']}`{form}"


def _is_unpruned(line: Line) -> bool:
    return float(line["pruned"]) == 0


def _difference(line: Line, what: str) -> str:
    if not line.get(what):
        return "-"
    value, low, high = (float(line[f"{what}{end}"]) for end in ("", " low", " high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _spread(lines: Sequence[Line]) -> str:
    """Return how far the averages of rules lie from each other."""
    found = []
    for domain, words in DOMAINS.items():
        values = [float(line[domain]) for line in lines]
        low, _, high = quantiles(values, n=4) if len(values) > 1 else values * 3
        found.append(f"{words} {min(values):.1f} to {max(values):.1f}, half of them {low:.1f} to {high:.1f}")
    return "; ".join(found)


def _same(lines: Iterable[Line]) -> str:
    """Return by how much two rules that are the same differ."""
    found = [line for line in lines if line["rule"] == "simple_average"]
    told = [
        f"{_difference(line, f'{domain} {REFERENCE}')} {words}" for line in found for domain, words in DOMAINS.items()
    ]
    return ", ".join(told) or "what was not measured"


def _signs(lines: Sequence[Line], what: str) -> str:
    """Return a list of which intervals leave zero out."""
    found = []
    for domain, words in DOMAINS.items():
        known = [line for line in lines if line.get(f"{domain} {what}")]
        above = [_name(line) for line in known if float(line[f"{domain} {what} low"]) > 0]
        below = [_name(line) for line in known if float(line[f"{domain} {what} high"]) < 0]
        told = f"above zero for {', '.join(above) or 'none'}; below zero for {', '.join(below) or 'none'}"
        found.append(
            f"- {words}: {told}; neither for the other {len(known) - len(above) - len(below)} of {len(known)}."
        )
    return "\n".join(found)


def _name(line: Line) -> str:
    pruned = "" if _is_unpruned(line) or not line["modifier"] else "pruned"
    return " ".join(filter(None, (_rule(line), line["modifier"] and f"with {line['modifier']}", pruned)))


def _finer(lines: Sequence[Line]) -> str:
    """Return what a finer grid changes."""
    changed = [line for line in lines if any(line[name] != line[f"finer {name}"] for name in ("scale", "settings"))]
    told = [f"It chose another point in {len(changed)} of {len(lines)} rows."]
    if changed:
        risen = [float(line["finer validation id"]) - float(line["validation id"]) for line in lines]
        told.append(f"The validation average rose by {mean(risen):.2f} points on average, by {max(risen):.2f} at most.")
        for domain, words in DOMAINS.items():
            moved = [float(line[f"{domain} {FINER}"]) for line in lines]
            told.append(f"{words}: {mean(moved):+.2f} on average, {min(moved):+.1f} to {max(moved):+.1f}.")
        ends = [(f"{domain} {FINER} low", f"{domain} {FINER} high") for domain in DOMAINS]
        apart = sum(float(line[low]) > 0 or float(line[high]) < 0 for line in changed for low, high in ends)
        told.append(f"{apart} of these {3 * len(changed)} differences have an interval that leaves zero out.")
    return " ".join(told)


PAGE = """# Every rule and modifier on the zoo

Made by `python benchmarks/rules_on_zoo.py`; [benchmark.csv](benchmark.csv) has all figures. Accuracy in %, averaged
over the five ID, the five near OOD and the five far OOD sets of the zoo, {test} test images in each.

## How it was measured

- **Tuned against tuned.** Each row's coefficient, and the hyper-parameters that the column "scale" names, have the best
  ID average on {validation} validation images of each ID set. Every choice was made before a test image was read. The
  grid: octaves of the usual coefficient, as far as the best one needs, then halves and quarters of an octave around it.
- **Compared in pairs.** "- t.a." is the difference from tuned, unpruned `task_arithmetic`, "- own" from the same rule,
  tuned, unpruned and without a modifier. Brackets hold the 95 % interval of a paired bootstrap over the test images.
- **What an interval leaves out**: other experts, other draws of validation images, and that so many are looked at. Of
  twenty intervals between equal models, one leaves zero out. `simple_average` is task arithmetic on a grid of other
  coefficients: that alone makes a difference of
  {same}.
- "pruned" is the half of layers with the lowest `mean_abs` of each task vector. With a modifier a rule has the
  hyper-parameters that were chosen for it alone; the modifier's own are chosen beside it. The coefficient of SVC and
  SubspaceBoosting is the one after them, which acts on what they calibrate; the other tensors keep the rule's.
- Fisher information and Gram matrices come from {samples} training images of each task.
- `adamerging` without coefficients is `task_arithmetic`, and `weighted_average` without weights `simple_average`.
- "s" are the processor's seconds of one merge in one thread, from files to tensors, the median of a few. They do not
  count what a [sweep](sweep.md) shares among candidates.

Would a finer grid matter? Around the choices of all unpruned rows the coefficient was tried in eighths of an octave,
and each number among the hyper-parameters half way to its neighbours. {finer}
The ID average, by which all is chosen, leaves near and far sets open: a difference there that is no larger than these
may come from the choice alone.

## What the zoo cannot show

Its experts are small and close to each other: 1.1 million parameters, five tasks, 250 steps from a base that knows all
of their alphabets. No rule has much interference to resolve. The tuned rules below have:
{spread}.

Earlier prototypes of the newest rules lay within 2 points of each other here: compare the intervals, not the order.
This page says that a rule works, and what a modifier does to it when both are tuned. It does not rank rules for your
models: on large ones with many tasks they lie far apart. These are ID averages of CLIP ViT-B/32 as the methods' own
papers report them; none was measured here:

{clip}

On the zoo merging lowers the average of the far sets, of unseen classes in unseen styles, and raises that of the near
ones, of unseen classes in the tasks' styles. Where it raises the average, as on the usual CLIP suites too, pruning
towards the base may lower it:
[examples/clip_benchmark](../examples/clip_benchmark/README.md#what-to-expect-of-pruning-here).

[study.md](study.md) compares methods on whole fronts, on several zoos. Measure on your own data: [tune.md](tune.md).

## Rules

Intervals against tuned task arithmetic:

{signs_of_rules}

{rules}

## Rules, half of the layers pruned

Intervals against the same rule unpruned, both tuned by the ID average:

{signs_of_pruned}

{pruned}

## Modifiers

Intervals against the same rule, unpruned and without a modifier:

{signs_of_modified}

{modified}

## Two tasks

`nuslerp` merges two tasks. Here it is compared with task arithmetic of the same two; ID is the average of their sets.

{two}
"""
