"""The study's pictures, from its tables alone; colours are those of Okabe and Ito, which nobody confuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from methods import Method
from reading import Tables

FRONTS = "study_fronts.png"
GAINS = "study_gains.png"
ZOOS = "study_zoos.png"
DPI = {FRONTS: 105, GAINS: 110, ZOOS: 72}
SHOWN = {
    Method("task_arithmetic"): ("task arithmetic", "#000000", "o"),
    Method("task_arithmetic", "mean_abs 0.5"): ("task arithmetic, half pruned", "#E69F00", "D"),
    Method("task_arithmetic", "gates"): ("LayerGates on task arithmetic", "#CC79A7", "s"),
    Method("tsv_m"): ("TSV-M", "#56B4E9", "o"),
    Method("tsv_m", "mean_abs 0.5"): ("TSV-M, half pruned", "#D55E00", "D"),
    Method("tsv_m", "gates"): ("LayerGates on TSV-M", "#009E73", "s"),
}
"""Methods that are drawn: name, colour, marker."""


def draw(tables: Tables, folder: Path, compared: Sequence[tuple[str, Method]]) -> list[str]:
    """Draw all pictures and return their names.

    Args:
        tables: What was measured.
        folder: Where to write.
        compared: Methods of the picture of gains, with their names.
    """
    first, *others = tables.zoos
    pictures = {FRONTS: _fronts(tables, [(first, group) for group in tables.groups(first)[1:]])}
    if others:
        pictures[ZOOS] = _fronts(tables, [(zoo, "ood") for zoo in others])
    pictures[GAINS] = _gains(tables, compared)
    for name, figure in pictures.items():
        figure.savefig(folder / name, dpi=DPI[name], metadata={"Software": None})
    return list(pictures)


def _fronts(tables: Tables, panels: Sequence[tuple[str, str]]) -> Figure:
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(9.5, 0.6 + 3.7 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (zoo, group) in zip(grid.flat, panels, strict=False):
        _panel(axes, tables, zoo, group)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _panel(axes: Any, tables: Tables, zoo: str, group: str) -> None:
    base = tables.single(zoo, "base")
    inside = [(float(base["id"]), float(base[group]))]
    axes.plot(*inside[0], "*", color="0.35", markersize=13, label="base", linestyle="none")
    for method, (label, colour, marker) in SHOWN.items():
        draws: dict[str, list[dict[str, str]]] = {}
        for row in tables.of(zoo, method):
            draws.setdefault(row["draw"], []).append(row)
        for number, rows in enumerate(draws.values()):
            points = [(float(row["id"]), float(row[group])) for row in rows]
            best = max(sum(point) for point in points)
            inside += [point for point in points if sum(point) > best - 12]
            name = None if number else label
            axes.plot(*zip(*points, strict=True), "-", marker=marker, color=colour, ms=3.5, lw=1.2, label=name)
            chosen = [point for row, point in zip(rows, points, strict=True) if "best" in row["chosen"]]
            axes.plot(*chosen[0], marker=marker, color=colour, ms=9, mfc="none", mew=1.6)
    for values, limit in zip(zip(*inside, strict=True), (axes.set_xlim, axes.set_ylim), strict=True):
        limit(min(values) - 1, max(values) + 1)
    axes.set(xlabel="ID average (%)", ylabel=f"{group} average (%)")
    axes.set_title(f"{zoo}: {group}", fontsize=10)
    axes.grid(alpha=0.3)


def _gains(tables: Tables, compared: Sequence[tuple[str, Method]]) -> Figure:
    zoos = list(dict.fromkeys(row["zoo"] for row in tables.comparisons))
    colours = ("#000000", "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#CC79A7")
    markers = "osD^vP"
    figure = Figure(figsize=(8.5, 1.3 + 0.62 * len(compared)), layout="constrained")
    axes = figure.subplots()
    for place, zoo in enumerate(zoos):
        for line, (_, method) in enumerate(compared):
            found = tables.difference(zoo, method, Method("task_arithmetic"), "best mean", "ood")
            if found is None:
                continue
            height = -line - (place - (len(zoos) - 1) / 2) * 0.13
            style = {"color": colours[place % 6], "marker": markers[place % 6]}
            error = [[found.value - found.low], [found.high - found.value]]
            axes.errorbar(found.value, height, xerr=error, ms=4.5, lw=1.2, label=zoo, **style)
    axes.axvline(0, color="0.4", lw=0.8)
    axes.set_yticks([-line for line in range(len(compared))], [name for name, _ in compared], fontsize=8)
    axes.set_xlabel("gain in the best mean of ID and OOD average over task arithmetic's own front (points)", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
