"""README's table, from the study's tables."""

from __future__ import annotations

from collections.abc import Iterable

from claims import (
    GATES,
    HALF,
    OWN,
    POOLED,
    SEEDS,
    TSV,
    TSV_HALF,
    TSV_LESS,
    at_published,
    cautious,
    columns,
)
from methods import Method
from reading import Tables, mean

from lwptv_lightning.report import markdown_table

RANDOM = Method("task_arithmetic", "random 0.5")
COLUMNS = {"id": "ID average", "ood/far": "far OOD", "ood/near": "near OOD"}
CHOICE = "best"


def table(tables: Tables) -> str:
    """Return the table: the shipped zoo, each method at the scale that is chosen on validation samples."""
    zoo = tables.zoos[0]
    masks = len(tables.chosen(zoo, RANDOM, CHOICE))
    published = f"{mean(tables.published(zoo, OWN), 'scale'):g}"
    as_learnt = tables.published(zoo, GATES)
    lines = [
        _line("pre-trained base", [tables.single(zoo, "base")]),
        _line("each expert alone (mean of five)", tables.experts(zoo)),
        _line(f"task arithmetic, scale {published}", tables.published(zoo, OWN)),
        _line(f"task arithmetic, scale {published}, half of the layers pruned", tables.published(zoo, HALF)),
        _tuned(tables, zoo, OWN, "task arithmetic, tuned"),
        _tuned(tables, zoo, HALF, "task arithmetic, half of the layers pruned, tuned"),
        _differences(tables, zoo, HALF, OWN, "pruned minus unpruned, both tuned"),
        _tuned(tables, zoo, RANDOM, f"*control:* half of the layers pruned at random, tuned, mean of {masks}"),
        _tuned(tables, zoo, TSV, "TSV-M, tuned"),
        _tuned(tables, zoo, TSV_LESS, "TSV-M, 0.3 of the layers pruned, tuned"),
        _tuned(tables, zoo, GATES, "**TSV-M, `LayerGates`**, tuned, mean of three draws"),
        _differences(tables, zoo, GATES, OWN, "minus task arithmetic, both tuned"),
        _line("the same as learnt, without a label", as_learnt),
    ]
    return markdown_table(["zoo, accuracy in %", *COLUMNS.values()], [line for line in lines if line])


def _line(name: str, rows: Iterable[dict[str, str]]) -> list[str]:
    rows = list(rows)
    return [name, *(f"{mean(rows, column):.1f}" for column in COLUMNS)] if rows else []


def _tuned(tables: Tables, zoo: str, method: Method, name: str) -> list[str]:
    return _line(name, tables.chosen(zoo, method, CHOICE))


def _differences(tables: Tables, zoo: str, method: Method, against: Method, name: str) -> list[str]:
    found = [tables.difference(zoo, method, against, CHOICE, column) for column in COLUMNS]
    return [name, *map(str, found)] if all(found) else []


def fronts(tables: Tables) -> str:
    """Return what methods gain in the best mean of ID and OOD average, a column a zoo, with the seeds together."""
    zoos = [zoo for zoo in columns(tables) if zoo not in SEEDS or POOLED not in columns(tables)]
    lines = []
    for method, against, name in (
        (GATES, OWN, "`LayerGates` on TSV-M, over task arithmetic"),
        (GATES, TSV, "`LayerGates` on TSV-M, over TSV-M"),
        (HALF, OWN, "`mean_abs` 0.5, over task arithmetic"),
        (TSV_HALF, TSV, "`mean_abs` 0.5, over TSV-M"),
        (TSV_LESS, TSV, "`mean_abs` 0.3, over TSV-M"),
    ):
        found = [tables.difference(zoo, method, against, "best mean", "ood") for zoo in zoos]
        lines.append([name, *(str(each) if each else "-" for each in found)])
    return markdown_table(["gain over a front", *zoos], lines)


def sentences(tables: Tables) -> list[str]:
    """Return what README says in words of the figures."""
    return [sentence for sentence in (at_published(tables), cautious(tables)) if sentence]
