"""Heat maps: the saliency of each layer of each task vector with what is pruned, and how alike task vectors are."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.merging import PruningPlan
from lwptv_lightning.report.canvas import Drawing, arrange, csv_of, drawing, listed, new_figure, some_labels
from lwptv_lightning.report.findings import Similarity
from lwptv_lightning.report.style import GRID

_ABREAST = 50
"""Layers in one strip."""
_MOST_STRIPS = 8
_MOST_CROSSES = 1500
"""Cells above which crosses are pixels in the SVG too."""
_MOST_CROSSED = 8000
"""Cells above which no cross would be seen: pruned ones are left blank."""
_MOST_NUMBERS = 14
"""Tasks of which a map of similarities has numbers in its cells."""
_MOST_ROWS = 20_000
"""Of a figure's data."""


def draw_saliency(plan: PruningPlan) -> Drawing | None:
    """Draw scores as strips of layers in execution order, a row for each task, with a cross in each pruned cell.

    Colours are ranks within a task, since scores of one task differ by orders of magnitude.
    """
    tasks, layers, kept = plan.mask.tasks, plan.mask.layers, plan.mask.kept.cpu()
    if not tasks or not layers:
        return None
    ranks = kept.double()  # without scores all is pruned, and of one colour
    if plan.scores is not None:
        ranks = plan.scores.values.cpu().argsort(dim=1).argsort(dim=1).double() / max(len(layers) - 1, 1)
    strips = min(_MOST_STRIPS, -(-len(layers) // _ABREAST))
    abreast = -(-len(layers) // strips)
    strips = -(-len(layers) // abreast)
    row, blank = min(0.26, 5.0 / len(tasks)), kept.numel() > _MOST_CROSSED
    shown = ranks.masked_fill(~kept, float("nan")) if blank else ranks
    length = max((min(len(name), 28) for name in layers), default=0)
    with drawing():
        figure = new_figure(0.9 + strips * (0.3 + row * len(tasks) + 0.068 * length))
        heights = [0.1, *[row * len(tasks)] * strips]
        scale, *grid = figure.subplots(strips + 1, 1, squeeze=False, height_ratios=heights)[:, 0]
        for strip, axes in enumerate(grid):
            some = slice(strip * abreast, (strip + 1) * abreast)
            image = _draw_strip(axes, shown[:, some], tasks, layers[some], abreast)
            if not blank:
                _cross(axes, kept[:, some], abreast, kept.numel() > _MOST_CROSSES)
        words = f"rank within the task (1 = most salient); {'blank' if blank else 'a cross'}: pruned"
        figure.colorbar(image, cax=scale, orientation="horizontal", ticklocation="top", label=words)
        arrange(figure)
    pruned = int((~kept).sum())
    caption = (
        "Layers in execution order. A crossed layer of a task vector is set to zero before merging, so that the "
        "merged model keeps the base's weights there as far as this task is concerned."
    )
    return Drawing("saliency", "Saliency and pruned layers", _told(plan, ranks, pruned), caption, _csv(plan), figure)


def _draw_strip(axes: Any, ranks: Tensor, tasks: Sequence[str], layers: Sequence[str], abreast: int) -> Any:
    axes.set_facecolor(GRID)
    image = axes.imshow(ranks.numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="none")
    axes.set_xlim(-0.5, abreast - 0.5)  # the last strip's cells are as wide as the others'
    places, labels = some_labels(layers, 56)
    axes.set_xticks(places, labels, rotation=90, fontsize=8)
    axes.set_yticks(*some_labels(tasks, 28, 20), fontsize=8)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return image


def _cross(axes: Any, kept: Tensor, abreast: int, as_pixels: bool) -> None:
    """Draw a cross in each pruned cell, white with a dark edge, which is seen on every colour."""
    rows, columns = (~kept).numpy().nonzero()
    style = {"marker": "x", "s": max(2.0, min(22.0, 900.0 / abreast, 330.0 / len(kept))), "rasterized": as_pixels}
    axes.scatter(columns, rows, color="black", linewidths=2.2, **style)
    axes.scatter(columns, rows, color="white", linewidths=1.0, **style)


def _told(plan: PruningPlan, ranks: Tensor, pruned: int) -> str:
    tasks, layers, kept = plan.mask.tasks, plan.mask.layers, plan.mask.kept.cpu()
    told = []
    for task, own, row in zip(tasks, kept, ranks, strict=True):
        words = f"{task}: {int((~own).sum())} of {len(layers)} layers pruned"
        if plan.scores is not None:
            words += f", most salient {layers[int(row.argmax())]}, least {layers[int(row.argmin())]}"
        told.append(words)
    share = 100 * pruned / kept.numel()
    head = f"Heat map of {len(layers)} layers by {len(tasks)} tasks; {pruned} of {kept.numel()} cells pruned"
    return f"{head} ({share:.0f} %). {listed(told)}."


def _csv(plan: PruningPlan) -> str:
    tasks, layers, kept = plan.mask.tasks, plan.mask.layers, plan.mask.kept.tolist()
    scores = None if plan.scores is None else plan.scores.values.tolist()
    rows = [
        [layer, task, None if scores is None else scores[row][column], int(kept[row][column])]
        for column, layer in enumerate(layers)
        for row, task in enumerate(tasks)
    ]
    return csv_of(["layer", "task", "score", "kept"], rows)


def draw_similarity(similarity: Similarity) -> Drawing | None:
    """Draw the cosines between task vectors; None where there are fewer than two."""
    tasks, count = similarity.tasks, len(similarity.tasks)
    if count < 2:
        return None
    values = torch.tensor(similarity.cosines, dtype=torch.float64)
    pairs = [
        (float(values[i, j]), tasks[i], tasks[j])
        for i in range(count)
        for j in range(i + 1, count)
        if isfinite(values[i, j])
    ]
    shown = values.clone()
    shown.fill_diagonal_(float("nan"))
    found = [value for value, _, _ in pairs] or [0.0]
    with drawing():
        side = min(6.6, 1.2 + 0.5 * count)
        figure = new_figure(side + 0.9, side + 2.4)
        axes = figure.subplots()
        axes.set_facecolor(GRID)
        low, high = min(0.0, *found), max(*found, 1e-9, min(found) + 1e-9)
        image = axes.imshow(shown.numpy(), cmap="cividis", vmin=low, vmax=high, interpolation="none")
        figure.colorbar(image, label="cosine", fraction=0.04)
        axes.set_xticks(*some_labels(tasks, 40, 20), rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(*some_labels(tasks, 40, 20), fontsize=8)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        if count <= _MOST_NUMBERS:
            _add_numbers(axes, shown, (low + high) / 2)
        arrange(figure)
    pairs.sort(reverse=True)
    told = [f"{first} and {second} {value:.2f}" for value, first, second in [*pairs[:3], *pairs[3:][-3:]]]
    mean = sum(found) / len(found)
    alt = f"Cosines between the task vectors of {count} tasks, from {min(found):.2f} to {max(found):.2f}, mean "
    caption = (
        "The cosine between two task vectors: near 0 they change the base in unrelated ways, above it in the same "
        "way, below it against each other."
    )
    rows = [
        [first, second, similarity.cosines[i][j]]
        for i, first in enumerate(tasks[: _MOST_ROWS // count])
        for j, second in enumerate(tasks)
    ]
    return Drawing(
        "similarity",
        "How alike the task vectors are",
        f"{alt}{mean:.2f}. {listed(told)}.",
        caption,
        csv_of(["task", "other", "cosine"], rows),
        figure,
    )


def _add_numbers(axes: Any, values: Tensor, middle: float) -> None:
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            if isfinite(value):
                color = "white" if value < middle else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8.5, color=color)
