"""Labels beside points, where there is room for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from lwptv_lightning.report.letters import drawable

_SIZE = 8.0
_WIDE, _HIGH = 0.62, 1.25
"""A letter's mean width and a line's height, of the size of letters."""
_CLEAR = 3.5
"""Half of what a point takes, in points of a typesetter."""

_Box: TypeAlias = tuple[float, float, float, float]
_Way: TypeAlias = tuple[float, float, str, str]


@dataclass(frozen=True)
class Label:
    """What is to stand beside a point.

    Attributes:
        place: The point, in data coordinates.
        text: The label.
        needed: Whether it stands there even where it overlaps others.
        bold: Whether it is pointed out.
    """

    place: tuple[float, float]
    text: str
    needed: bool = False
    bold: bool = False


def place_labels(axes: Any, labels: Sequence[Label], points: Sequence[tuple[float, float]]) -> int:
    """Put labels beside their points, the first ones first, where they cover neither points nor each other.

    Args:
        axes: Where; its limits and its place in the figure are final.
        labels: What to put there.
        points: All points that are drawn.

    Returns:
        How many stand there.
    """
    scale = 72 / axes.figure.dpi
    frame = axes.get_window_extent()
    limits: _Box = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
    centres = [tuple(each * scale) for each in axes.transData.transform(points)] if len(points) else []
    taken: list[_Box] = [(x - _CLEAR, y - _CLEAR, x + _CLEAR, y + _CLEAR) for x, y in centres]
    placed = 0
    for label in labels:
        text = drawable(label.text, 28)
        x, y = (float(each) * scale for each in axes.transData.transform(label.place))
        wide, high = len(text) * _SIZE * _WIDE * (1.08 if label.bold else 1), _SIZE * _HIGH
        cost, box, (dx, dy, across, along) = min(
            ((_cost(box, taken, limits), box, way) for box, way in _ways(x, y, wide, high, 4 if label.needed else 0)),
            key=lambda found: found[0],
        )
        if not text or (cost and not label.needed):
            continue
        weight = "bold" if label.bold else "normal"
        options = {"fontsize": _SIZE, "ha": across, "va": along, "fontweight": weight, "zorder": 6}
        shown = axes.annotate(text, label.place, (dx, dy), textcoords="offset points", **options)
        shown.set_in_layout(False)
        taken.append(box)
        placed += 1
    return placed


def _ways(x: float, y: float, wide: float, high: float, further: float) -> list[tuple[_Box, _Way]]:
    """Return where a label may stand: its box, and offset and alignment that put it there."""
    found = []
    for across, along in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
        away = (6.0 if 0 in (across, along) else 4.5) + further  # what is needed stands beside a ring or a star
        dx, dy = across * away, along * away
        left = x + dx - wide * (1 - across) / 2
        low = y + dy - high * (1 - along) / 2
        ends = {1: ("left", "bottom"), 0: ("center", "center"), -1: ("right", "top")}
        found.append(((left, low, left + wide, low + high), (dx, dy, ends[across][0], ends[along][1])))
    return found


def _cost(box: _Box, taken: Sequence[_Box], limits: _Box) -> float:
    """Return how much of others a label would cover, and how much of it would lie outside."""
    covered = sum(_common(box, other) for other in taken)
    area = (box[2] - box[0]) * (box[3] - box[1])
    return covered + 10 * (area - _common(box, limits)) if area - _common(box, limits) > 1e-6 else covered


def _common(first: _Box, second: _Box) -> float:
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    return max(wide, 0) * max(high, 0)
