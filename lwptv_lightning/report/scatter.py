"""OOD over ID accuracy: every model, the fronts of the pruned and the unpruned, and the band of random masks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite, nan
from typing import Any

from matplotlib.patches import Polygon

from lwptv_lightning.registry import LoaderName
from lwptv_lightning.report.canvas import (
    Drawing,
    add_legend,
    arrange,
    csv_of,
    drawing,
    listed,
    new_figure,
)
from lwptv_lightning.report.findings import FAMILIES, Point
from lwptv_lightning.report.fronts import Place, front_of, outline_of
from lwptv_lightning.report.labels import Label, place_labels
from lwptv_lightning.report.letters import drawable
from lwptv_lightning.report.pictures import panels_of
from lwptv_lightning.report.style import BAND, INK
from lwptv_lightning.report.table import ResultRow, percent

_WITH_FRONTS = ("unpruned", "pruned", "learnt")
_SHOWN = {
    "base": ("base", INK, "*", 150),
    "expert": ("experts of one task", "#009e73", "^", 42),
    "unpruned": ("not pruned", "#0072b2", "o", 26),
    "pruned": ("pruned", "#d55e00", "D", 24),
    "random": ("random masks", "#cc79a7", "P", 24),
    "learnt": ("learnt on data", "#e69f00", "s", 26),
}
"""Family to words, colour, shape and size."""
_MOST_LABELS = 60
_MOST_POINTS = 1500
"""Above these, points are pixels in the SVG too."""


def draw_scatter(points: Sequence[Point]) -> Drawing | None:
    """Draw models by their ID and OOD averages, a panel for each group of OOD sets; None where no model has both."""
    points = [each for each in points if all(isfinite(each.figures.get(over, nan)) for over in ("id/avg", "ood/avg"))]
    if not points:
        return None
    points = sorted(points, key=lambda each: FAMILIES.index(each.family))
    overs = panels_of([ResultRow(each.name, each.figures) for each in points])
    columns = min(2, len(overs))
    lines = -(-len(overs) // columns)
    with drawing():
        figure = new_figure(0.9 + (4.6 if columns == 2 else 5.2) * lines)
        grid = list(figure.subplots(lines, columns, squeeze=False).flat)
        drawn = [_draw(axes, points, over) for axes, over in zip(grid, overs, strict=False)]
        for axes in grid[len(overs) :]:
            axes.remove()
        add_legend(figure, list(drawn[0].items()))
        arrange(figure)
        beyond = [_label(axes, points, over) for axes, over in zip(grid, overs, strict=False)]
    return Drawing(
        "id_ood",
        "OOD over ID accuracy",
        " ".join(_told(points, over) for over in overs),
        _caption(points, max(beyond)),
        _csv(points),
        figure,
    )


def _draw(axes: Any, points: Sequence[Point], over: str) -> dict[str, Any]:
    """Draw one panel; return names and what a legend shows of them."""
    named: dict[str, Any] = {}
    _draw_band(axes, points, over)
    for family in FAMILIES:
        own = _places([point for point in points if point.family == family], over)
        if not own:
            continue
        words, colour, marker, size = _SHOWN[family]
        front = set(front_of(own)) if family in _WITH_FRONTS else set(range(len(own)))
        if family in _WITH_FRONTS and len(front) > 1:
            line = [own[index] for index in front_of(own)]
            axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.5, zorder=2, alpha=0.8)
        styles = {"marker": marker, "color": colour, "zorder": 3, "rasterized": len(own) > _MOST_POINTS}
        behind = [place for index, place in enumerate(own) if index not in front]
        if behind:
            axes.scatter(*zip(*behind, strict=True), s=size * 0.5, alpha=0.55, linewidths=0, **styles)
        shown = [own[index] for index in sorted(front)]
        named[words] = axes.scatter(*zip(*shown, strict=True), s=size, linewidths=0, **styles)
    chosen = _places([point for point in points if point.chosen], over)
    if chosen:
        rings = {"s": 120, "marker": "o", "facecolors": "none", "edgecolors": INK, "linewidths": 1.6, "zorder": 5}
        named["chosen"] = axes.scatter(*zip(*chosen, strict=True), **rings)
    (left, right), (low, high) = (_around([place[at] for place in _kept(points, over)]) for at in (0, 1))
    heading = LoaderName.of_figure(f"{over}/avg").heading.removesuffix(" avg")
    axes.set(xlim=(left, right), ylim=(low, high), xlabel="ID average (%)")
    axes.set_ylabel(f"{drawable(heading)} average (%)")
    return named


def _draw_band(axes: Any, points: Sequence[Point], over: str) -> None:
    """Fill the area of all random masks: of each kind, and between one kind and the next."""
    kinds: dict[str, list[Place]] = {}
    for point in points:
        if point.family == "random":
            kinds.setdefault(point.label, []).extend(_places([point], over))
    ordered = sorted(kinds.values(), key=lambda own: sum(place[0] for place in own) / len(own))
    together = [first + second for first, second in pairwise(ordered)] or ordered
    for own in together:
        corners = outline_of(own)
        # With a line around it, so that the few points of one kind have an area too.
        axes.add_patch(
            Polygon(corners, closed=True, facecolor=BAND, edgecolor=BAND, linewidth=9, joinstyle="round", zorder=0.5)
        )


def _kept(points: Sequence[Point], over: str) -> list[Place]:
    """Return the places that a panel must show: all but those far behind every front."""
    kept = [point for point in points if point.family not in _WITH_FRONTS or point.chosen]
    places = _places(kept, over)
    for family in _WITH_FRONTS:
        own = _places([point for point in points if point.family == family], over)
        front = [own[index] for index in front_of(own)]
        least = tuple(min((place[at] for place in [*front, *places]), default=0.0) for at in (0, 1))
        places += [*front, *(place for place in own if place[0] >= least[0] and place[1] >= least[1])]
    return places


def _label(axes: Any, points: Sequence[Point], over: str) -> int:
    """Put labels into a panel, and return how many points lie beyond its edges."""
    wanted: list[tuple[int, Label]] = []
    for family in FAMILIES:
        own = [point for point in points if point.family == family]
        places = _places(own, over)
        front = set(front_of(places))
        for index, (point, place) in enumerate(zip(own, places, strict=True)):
            text = point.label or (point.name if point.chosen or family in ("base", "expert") else "")
            if family == "random" and not point.chosen:
                continue  # the band says it
            rank = 0 if point.chosen else 1 if family == "base" else 2 if index in front else 3
            wanted.append((rank, Label(place, text, rank < 2, point.chosen)))
    wanted.sort(key=lambda each: each[0])
    place_labels(axes, [label for _, label in wanted[:_MOST_LABELS] if label.text], _places(points, over))
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    return sum(not (left <= x <= right and low <= y <= high) for x, y in _places(points, over))


def _places(points: Sequence[Point], over: str) -> list[Place]:
    return [(100 * point.figures["id/avg"], 100 * point.figures[f"{over}/avg"]) for point in points]


def _around(values: Sequence[float]) -> tuple[float, float]:
    """Return the limits of an axis that shows all values with some room."""
    margin = 0.6 + 0.07 * (max(values) - min(values))
    return min(values) - margin, max(values) + margin


def _caption(points: Sequence[Point], beyond: int) -> str:
    families = {point.family for point in points}
    several = {each for each in _WITH_FRONTS if sum(point.family == each for point in points) > 1}
    told = ["Up and to the right is better."]
    if several:
        told.append(
            "Each line is a front: of its kind no other model is better in one average and no worse in the other. "
            "Smaller marks are behind it."
        )
    if "random" in families:
        told.append("The shaded band holds the random masks, which prune as much without looking.")
    if any(point.label and point.family in _WITH_FRONTS for point in points):
        told.append("Labels are scaling coefficients or names, where there is room for them.")
    if any(point.chosen for point in points):
        told.append("A ring is around what was chosen.")
    if beyond:
        told.append(f"{beyond} model{'s lie' if beyond > 1 else ' lies'} far behind, outside of the picture.")
    return " ".join(told)


def _told(points: Sequence[Point], over: str) -> str:
    heading = LoaderName.of_figure(f"{over}/avg").heading.removesuffix(" avg")
    told = []
    for family in FAMILIES:
        own = [point for point in points if point.family == family]
        places = _places(own, over)
        if not own:
            continue
        words = _SHOWN[family][0]
        if len(own) == 1:
            told.append(f"{words} {_at(places[0])}")
        elif family in _WITH_FRONTS:
            front = [places[index] for index in front_of(places)]
            told.append(f"{words}, {len(own)} models, front from {_at(front[0])} to {_at(front[-1])}")
        else:
            (x0, x1), (y0, y1) = ((min(each), max(each)) for each in zip(*places, strict=True))
            told.append(f"{words}, {len(own)} models, ID {x0:.1f} to {x1:.1f}, OOD {y0:.1f} to {y1:.1f}")
    chosen = [point for point in points if point.chosen]
    told += [f"chosen: {point.name} {_at(place)}" for point, place in zip(chosen, _places(chosen, over), strict=True)]
    return f"{heading} average over ID average, in %: {listed(told, 12)}."


def _at(place: Place) -> str:
    return f"ID {percent(place[0] / 100)}, OOD {percent(place[1] / 100)}"


def _csv(points: Sequence[Point]) -> str:
    names = dict.fromkeys(name for point in points for name in point.figures if LoaderName.of_figure(name).is_average)
    rows = (
        [point.name, point.family, point.label, int(point.chosen), *map(point.figures.get, names)] for point in points
    )
    return csv_of(["model", "family", "label", "chosen", *names], rows)
