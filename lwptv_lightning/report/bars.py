"""Bars: each task's accuracy by merged models, beside that of its own expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import Any

from lwptv_lightning.registry import own_tasks
from lwptv_lightning.report.canvas import Drawing, add_legend, arrange, csv_of, drawing, listed, new_figure
from lwptv_lightning.report.letters import drawable_apart
from lwptv_lightning.report.style import INK, SERIES
from lwptv_lightning.report.table import ResultRow, percent

_MOST_MODELS = 4
_MOST_TASKS = 60
_BAR, _GAP = 0.15, 0.14
"""Inches of a bar, and between tasks."""


def draw_bars(rows: Sequence[ResultRow], experts: Mapping[str, float]) -> Drawing | None:
    """Draw the accuracy of some models on each task, with a line where the task's own expert is.

    Args:
        rows: The models.
        experts: Task to its own expert's accuracy.

    Returns:
        The figure; None where no model has the figure of a task that an expert has one of.
    """
    loaders = dict.fromkeys(name for row in rows for name in row.figures if not name.endswith(("/avg", "/normalized")))
    tasks = {loader: task for loader, task in own_tasks(_named(loaders), experts).items() if isfinite(experts[task])}
    rows = [row for row in rows if any(_accuracy(row, loader) is not None for loader in tasks)][:_MOST_MODELS]
    if not rows:
        return None
    sets = [loader for loader in tasks if any(_accuracy(row, loader) is not None for row in rows)]
    shown = sets[:_MOST_TASKS]
    if len(sets) > _MOST_TASKS:  # those that lose most
        lost = {loader: _lost(rows[0], loader, experts[tasks[loader]]) for loader in sets}
        shown = sorted(sets, key=lambda loader: -lost[loader])[:_MOST_TASKS]
    labels = [tasks[loader] if list(tasks.values()).count(tasks[loader]) == 1 else loader for loader in shown]
    step = _BAR * len(rows) + _GAP
    with drawing():
        figure = new_figure(1.3 + step * len(shown))
        axes = figure.subplots()
        named = _draw(axes, rows, [(loader, experts[tasks[loader]]) for loader in shown], step)
        middle = [-number * step for number in range(len(shown))]
        axes.set_yticks(middle, drawable_apart(labels, 28))
        axes.set(xlabel="accuracy (%)", xlim=(0, 100), ylim=(middle[-1] - step / 2, step / 2))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        add_legend(figure, named, 3)
        arrange(figure)
    told = []
    for loader, label in zip(shown, labels, strict=True):
        own = [f"{row.name} {percent(value)}" for row in rows if (value := _accuracy(row, loader)) is not None]
        told.append(f"{label}: expert {percent(experts[tasks[loader]])}, {', '.join(own)}")
    caption = "Each task's own test set. The upright stroke is the accuracy of the task's own expert, before merging."
    if len(shown) < len(sets):
        caption += f" The {len(shown)} of {len(sets)} tasks that lose most; the others are in the data alone."
    return Drawing(
        "tasks",
        "Each task against its expert",
        f"Accuracy in % on each task. {listed(told, 20)}.",
        caption,
        csv_of(
            ["task", "set", "model", "accuracy", "expert"],
            (
                [tasks[loader], loader, row.name, _accuracy(row, loader), experts[tasks[loader]]]
                for loader in sets
                for row in rows
            ),
        ),
        figure,
    )


def _named(loaders: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Return which figures are of whole sets, not of parts or of averages."""
    return [name for name in loaders if name.startswith("id/")]


def _draw(
    axes: Any, rows: Sequence[ResultRow], sets: Sequence[tuple[str, float]], step: float
) -> list[tuple[str, Any]]:
    named: list[tuple[str, Any]] = []
    for number, row in enumerate(rows):
        heights = [-place * step + _BAR * ((len(rows) - 1) / 2 - number) for place in range(len(sets))]
        values = [100 * (_accuracy(row, loader) or 0.0) for loader, _ in sets]
        bars = axes.barh(heights, values, height=_BAR * 0.88, color=SERIES[number % len(SERIES)])
        named.append((row.name, bars))
    places = [-place * step for place in range(len(sets))]
    half = _BAR * len(rows) / 2 + 0.03
    stroke = axes.vlines(
        [100 * expert for _, expert in sets],
        [place - half for place in places],
        [place + half for place in places],
        color=INK,
        linewidth=2.2,
        clip_on=False,  # of one that is never wrong, too
    )
    return [*named, ("the task's own expert", stroke)]


def _accuracy(row: ResultRow, loader: str) -> float | None:
    value = nan if loader in row.plain else float(row.figures.get(loader, nan))
    return value if isfinite(value) else None


def _lost(row: ResultRow, loader: str, expert: float) -> float:
    value = _accuracy(row, loader)
    return -1.0 if value is None else expert - value
