"""Lines: accuracy against the ratio that each score prunes, and how far each layer is from the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from lwptv_lightning.report.canvas import (
    Drawing,
    add_legend,
    arrange,
    csv_of,
    drawing,
    listed,
    new_figure,
    some_labels,
)
from lwptv_lightning.report.style import MARKERS, SERIES
from lwptv_lightning.report.table import percent

_MOST_LINES = 8
_DASHES = ("-", "--", ":", "-.")


def draw_curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Drawing | None:
    """Draw ID averages against the ratio of layers that is pruned, a line for each score."""
    found = {
        score: sorted((float(ratio), float(value)) for ratio, value in pairs if isfinite(ratio) and isfinite(value))
        for score, pairs in curves.items()
    }
    found = {score: pairs for score, pairs in found.items() if pairs}
    if not found:
        return None
    with drawing():
        figure = new_figure(4.4)
        axes = figure.subplots()
        named = [
            (score, _draw(axes, [100 * x for x, _ in pairs], [100 * y for _, y in pairs], number))
            for number, (score, pairs) in enumerate([*found.items()][:_MOST_LINES])
        ]
        axes.set(xlabel="ratio pruned (%)", ylabel="ID average (%)")
        add_legend(figure, named)
        arrange(figure)
    told = []
    for score, pairs in found.items():
        top = max(pairs, key=lambda pair: pair[1])
        first, last = pairs[0], pairs[-1]
        told.append(
            f"{score}: {percent(first[1])} at ratio {first[0]:g}, {percent(last[1])} at {last[0]:g}, "
            f"highest {percent(top[1])} at {top[0]:g}"
        )
    caption = "How ID accuracy changes as more layers of each task vector are pruned, by what is pruned first."
    rows = ([score, ratio, value] for score, pairs in found.items() for ratio, value in pairs)
    return Drawing(
        "ratio",
        "Accuracy against ratio",
        f"ID average in %, over the ratio pruned. {listed(told)}.",
        caption + _beyond(found, "scores"),
        csv_of(["score", "ratio", "id/avg"], rows),
        figure,
    )


def draw_changes(changes: Mapping[str, Mapping[str, float]]) -> Drawing | None:
    """Draw the norm of each model's change from the base by layer."""
    layers = list(changes)
    models = list(dict.fromkeys(model for own in changes.values() for model in own))
    models = [model for model in models if any(isfinite(own.get(model, float("nan"))) for own in changes.values())]
    if not models:
        return None
    columns = {model: [float(changes[layer].get(model, float("nan"))) for layer in layers] for model in models}
    length = max(min(len(layer), 28) for layer in layers)
    with drawing():
        figure = new_figure(3.6 + 0.068 * length)
        axes = figure.subplots()
        named = [
            (model, _draw(axes, list(range(len(layers))), columns[model], number, few=len(layers) <= 60))
            for number, model in enumerate(models[:_MOST_LINES])
        ]
        places, labels = some_labels(layers, 56)
        axes.set_xticks(places, labels, rotation=90, fontsize=8)
        axes.set(ylabel="norm of the change from the base", xlim=(-0.7, len(layers) - 0.3))
        axes.set_ylim(bottom=0)
        add_legend(figure, named, 3)
        arrange(figure)
    told = []
    for model, values in columns.items():
        known = [(value, layer) for value, layer in zip(values, layers, strict=True) if isfinite(value)]
        top, total = max(known), sum(value**2 for value, _ in known) ** 0.5
        told.append(f"{model}: {total:.3g} in all, largest {top[0]:.3g} in {top[1]}")
    caption = "Layers in execution order. Where a line touches 0 the model has the base's own weights."
    rows = (
        [layer, model, value]
        for layer, own in changes.items()
        for model, value in own.items()
    )  # fmt: skip
    return Drawing(
        "changes",
        "Change by layer",
        f"Norm of the change from the base in {len(layers)} layers. {listed(told)}.",
        caption + _beyond(columns, "models"),
        csv_of(["layer", "model", "change"], rows),
        figure,
    )


def _draw(axes: Any, x: Sequence[float], y: Sequence[float], number: int, few: bool = True) -> Any:
    style = {"color": SERIES[number % len(SERIES)], "linestyle": _DASHES[number % len(_DASHES)], "linewidth": 1.5}
    marker = MARKERS[number % len(MARKERS)] if few else None
    (line,) = axes.plot(x, y, marker=marker, markersize=4.5, **style)
    return line


def _beyond(series: Mapping[str, Any], what: str) -> str:
    rest = len(series) - _MOST_LINES
    return f" {rest} further {what} are in the data alone." if rest > 0 else ""
