"""Pictures from figures that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lwptv_lightning.files import Stage, naming
from lwptv_lightning.merging import PruningPlan
from lwptv_lightning.registry import LoaderName
from lwptv_lightning.report.letters import drawable
from lwptv_lightning.report.table import ResultRow


def plot_saliency(plan: PruningPlan, path: Path) -> Path:
    """Draw scores as a heat map of layers by tasks, with a cross in each pruned cell.

    Colours are ranks within a task, since scores of one task differ by orders of magnitude.

    Args:
        plan: Scores and mask.
        path: The PNG to write, which is returned.
    """
    ranks = plan.mask.kept.double()  # without scores all is pruned, and of one colour
    if plan.scores is not None:
        ranks = plan.scores.values.argsort(dim=1).argsort(dim=1) / max(len(plan.layers) - 1, 1)
    tasks, layers = (list(map(drawable, names)) for names in (plan.mask.tasks, plan.mask.layers))
    width = 2.5 + 0.9 * len(tasks) + _room(layers, 20)
    figure = Figure(figsize=(width, 1.6 + 0.17 * len(layers) + _room(tasks, 10)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(ranks.T.numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=1)
    pruned_tasks, pruned_layers = (~plan.mask.kept).numpy().nonzero()
    axes.scatter(pruned_tasks, pruned_layers, marker="x", color="white", s=14, linewidths=1)
    axes.set_xticks(range(len(tasks)), tasks, rotation=35, ha="right", parse_math=False)
    axes.set_yticks(range(len(layers)), layers, fontsize=6, parse_math=False)
    axes.set_title("Saliency of each layer of each task vector\n(cross: pruned)", fontsize=10)
    figure.colorbar(image, label="rank within the task (1 = most salient)")
    return _save(figure, path)


def plot_id_ood(
    rows: Sequence[ResultRow], path: Path, curve: Sequence[ResultRow] = (), cloud: Sequence[ResultRow] = ()
) -> Path:
    """Draw OOD over ID accuracy, a point for each model; where the OOD sets are in groups, a panel for each group.

    Each rule has a colour and a shape; of two that an arrow joins, the unpruned model is hollow.

    Args:
        rows: Named points; a row named ``"X pruned"`` is joined to ``"X"`` by an arrow.
        path: The PNG to write, which is returned.
        curve: Points joined by a line, such as the same rule at several scaling coefficients.
        cloud: Unnamed points, such as random masks.
    """
    panels = panels_of([*rows, *curve, *cloud])
    columns = min(len(panels), _ABREAST)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(8.5 + 4.2 * (columns - 1), 6 if lines == 1 else 4.8 * lines), layout="constrained")
    grid = list(figure.subplots(lines, columns, sharex=True, squeeze=False).flat)
    for axes, over in zip(grid, panels, strict=False):
        named = _draw_panel(axes, over, rows, curve, cloud)
    for axes in grid[len(panels) :]:
        axes.remove()
    _add_legend(grid[columns - 1], named)
    return _save(figure, path)


def panels_of(rows: Sequence[ResultRow]) -> list[str]:
    """Return what OOD averages are over: groups that all rows have figures of, if they hold all sets, or the domain."""
    sets = {name: LoaderName.of_figure(name) for row in rows for name in row.figures}
    overs = dict.fromkeys(name.over for name in sets.values() if name.over is not None and name.over.startswith("ood/"))
    alone = any(name.domain == "ood" and name.over is None and name.group is None for name in sets.values())
    known = [
        over
        for over in overs
        if all(f"{over}/avg" not in row.plain and isfinite(row.figures.get(f"{over}/avg", nan)) for row in rows)
    ]
    return known if 1 < len(known) == len(overs) <= _MOST_PANELS and not alone else ["ood"]


def _draw_panel(
    axes: Any, over: str, rows: Sequence[ResultRow], curve: Sequence[ResultRow], cloud: Sequence[ResultRow]
) -> list[tuple[str, Any]]:
    """Draw OOD averages over something against ID averages; return names and what a legend shows of them."""
    named: list[tuple[str, Any]] = []
    if curve:
        (line,) = axes.plot(*_coordinates(curve, over), "-", marker=".", color="0.5", zorder=1)
        named.append(("task arithmetic, coefficient 0.1 … 1.0", line))
    if cloud:
        points = axes.scatter(*_coordinates(cloud, over), color="0.5", marker="+", s=36, linewidths=1, zorder=1)
        named.append(("random masks", points))
    by_name = {row.name: row for row in rows}
    order = {name: index for index, name in enumerate(dict.fromkeys(map(_twin, by_name)))}
    for row in rows:
        (x,), (y,) = _coordinates([row], over)
        twin = by_name.get(_twin(row.name), row)
        if twin is not row:
            (x0,), (y0,) = _coordinates([twin], over)
            axes.annotate("", (x, y), (x0, y0), arrowprops={"arrowstyle": "->", "color": "0.3", "alpha": 0.7})
        color, marker = (of[order[_twin(row.name)] % len(of)] for of in (_COLORS, _MARKERS))
        face = "white" if row.name + PRUNED_SUFFIX in by_name else color
        point = axes.scatter(x, y, edgecolors=color, facecolors=face, marker=marker, s=55, linewidths=1.8, zorder=2)
        named.append((row.name, point))
    # The ends of a curve can lie far from every model that one would use.
    xlim, ylim = (_around(values) for values in _coordinates([*rows, *cloud], over))
    heading = LoaderName.of_figure(f"{over}/avg").heading.removesuffix(" avg")
    axes.set(xlim=xlim, ylim=ylim, xlabel="ID average (%)")
    axes.set_ylabel(f"{drawable(heading)} average (%)", parse_math=False)
    axes.tick_params(labelbottom=True)
    axes.grid(alpha=0.3)
    return named


_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of Okabe and Ito, which the colour-blind tell apart too."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
"""One more than colours, so that the two come together anew later only."""
_ABREAST = 2
_MOST_PANELS = 6
_DPI = 130
_MOST_PIXELS = 60_000
"""Of a picture's longer side; a model of thousands of layers is drawn smaller."""
PRUNED_SUFFIX = " pruned"
"""What a pruned model's row is called beyond the name of its unpruned twin."""


def _add_legend(axes: Any, named: Sequence[tuple[str, Any]]) -> None:
    # Names are set afterwards: a legend leaves out those that begin with an underscore.
    numbers = [str(number) for number in range(len(named))]
    legend = axes.legend(
        [artist for _, artist in named], numbers, fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5)
    )
    for text, (name, _) in zip(legend.get_texts(), named, strict=True):
        text.set_parse_math(False)
        text.set_text(drawable(name))


def _room(labels: Sequence[str], usual: int) -> float:
    """Return how many inches the longest of some labels takes beyond a usual number of characters."""
    return 0.06 * max((len(label) - usual for label in labels if len(label) > usual), default=0)


def _around(values: Sequence[float]) -> tuple[float, float]:
    """Return the limits of an axis that shows all values with some room."""
    margin = 1 + 0.08 * (max(values) - min(values))
    return min(values) - margin, max(values) + margin


def _twin(name: str) -> str:
    """Return the name of the unpruned model."""
    return name.removesuffix(PRUNED_SUFFIX)


def _coordinates(rows: Sequence[ResultRow], over: str) -> tuple[list[float], list[float]]:
    return [100 * row.figures["id/avg"] for row in rows], [100 * row.figures[f"{over}/avg"] for row in rows]


def _save(figure: Figure, path: Path) -> Path:
    path = Path(path)
    with Stage(path) as stage:
        with naming(path):
            figure.savefig(stage.folder / path.name, dpi=min(_DPI, _MOST_PIXELS / max(figure.get_size_inches())))
        stage.install(path.name, path)
    return path
