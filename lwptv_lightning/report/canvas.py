"""A figure with what is said of it, and its files: SVG for a light and a dark ground, PNG, and its data as CSV."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lwptv_lightning.report.document import Picture
from lwptv_lightning.report.letters import drawable_apart
from lwptv_lightning.report.style import FAINT, GRID, GROUND, INK, dark_of
from lwptv_lightning.report.table import csv_line

WIDTH = 9.6
"""Inches, which are a page's width at its natural size."""
HIGHEST = 120.0
"""Inches: figures of more lines than that show less of each."""
_DPI = 130
_MOST_PIXELS = 12_000
_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": FAINT,
    "axes.facecolor": GROUND,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.facecolor": GROUND,
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.edgecolor": GRID,
    "legend.facecolor": GROUND,
    "legend.fontsize": 9,
    "legend.framealpha": 1.0,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "lwptv-lightning",
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Drawing:
    """A figure that is drawn, with its data.

    Attributes:
        name: What its files are called.
        title: What it shows.
        alt: What it shows, in numbers.
        caption: How it is read.
        csv: Its data.
        figure: The figure.
    """

    name: str
    title: str
    alt: str
    caption: str
    csv: str
    figure: Figure

    def picture(self) -> Picture:
        """Return the figure as pages show it."""
        svg, (wide, high) = self.svg(), self.figure.get_size_inches()
        size = round(96 * float(wide)), round(96 * float(high))
        return Picture(self.name, self.title, self.alt, self.caption, svg.encode(), dark_of(svg).encode(), size)

    def svg(self) -> str:
        """Return the figure as SVG, of the same bytes each time."""
        with drawing():
            written = io.StringIO()
            # Without a date and without what wrote it, which would differ; and then without any metadata.
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self.figure.savefig(written, format="svg", metadata=nothing, dpi=self._dpi)
        return written.getvalue()

    def png(self) -> bytes:
        """Return the figure as PNG."""
        with drawing():
            written = io.BytesIO()
            self.figure.savefig(written, format="png", metadata={"Software": None}, dpi=self._dpi)
        return written.getvalue()

    @property
    def _dpi(self) -> float:
        return min(float(_DPI), _MOST_PIXELS / float(max(self.figure.get_size_inches())))


@contextmanager
def drawing() -> Iterator[None]:
    """Draw and write as this module has it, whatever a user set for other pictures."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure, by default of a page's width."""
    return Figure(figsize=(width, min(height, HIGHEST)), layout="constrained")


def arrange(figure: Figure) -> None:
    """Put all that a figure has where it belongs, once for all ways to write it."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def add_legend(figure: Figure, named: Sequence[tuple[str, Any]], columns: int = 4) -> None:
    """Add a legend below all panels, of names and what shows them."""
    if not named:
        return
    # Names are set afterwards: a legend leaves out those that begin with an underscore.
    numbers = [str(number) for number in range(len(named))]
    legend = figure.legend(
        [shown for _, shown in named], numbers, loc="outside lower center", ncols=min(columns, len(named))
    )
    for text, name in zip(legend.get_texts(), drawable_apart([name for name, _ in named], 44), strict=True):
        text.set_text(name)


def some_labels(names: Sequence[str], most: int, length: int = 28) -> tuple[list[int], list[str]]:
    """Return places and labels of as many of some names as there is room for, evenly.

    Example:
        >>> some_labels(["a", "b", "c", "d", "e"], 3)
        ([0, 2, 4], ['a', 'c', 'e'])
    """
    step = max(1, -(-len(names) // most))
    places = list(range(0, len(names), step))
    return places, drawable_apart([names[place] for place in places], length)


def csv_of(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a figure's data as CSV, which no spreadsheet computes."""
    return "".join(csv_line(list(row)) for row in (headings, *rows))


def listed(texts: Sequence[str], most: int = 8) -> str:
    """Return some texts as a list in words."""
    more = f"; and {len(texts) - most} more" if len(texts) > most else ""
    return "; ".join(texts[:most]) + more
