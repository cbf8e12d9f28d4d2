"""Tables of figures that are there already: on a terminal, in Markdown and in CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lwptv_lightning.registry import LoaderName


@dataclass(frozen=True)
class ResultRow:
    """The figures of one model.

    Attributes:
        name: What the model is.
        figures: Loader name, ``id/avg`` and ``ood/avg`` to a fraction in [0, 1].
        seconds: How long the merge took; ``None`` where nothing was merged.
        note: What stands beside the averages, such as a range.
    """

    name: str
    figures: Mapping[str, float]
    seconds: float | None = None
    note: str = ""


@dataclass
class ResultTable:
    """Rows of figures that share their columns; the same table on screen, in Markdown and in CSV.

    Args:
        rows: One for each model.

    Example:
        >>> table = ResultTable([ResultRow("base", {"id/a": 0.5, "id/avg": 0.5})])
        >>> print(table.markdown())
        | model | id a | ID avg | seconds | note |
        |---|---|---|---|---|
        | base | 50.0 | 50.0 |  |  |
    """

    rows: list[ResultRow] = field(default_factory=list)

    @property
    def columns(self) -> tuple[str, ...]:
        """The figures' names in order of appearance, averages last."""
        names = dict.fromkeys(name for row in self.rows for name in row.figures)
        return tuple(sorted(names, key=lambda name: LoaderName.of_figure(name).is_average))

    def cells(self, row: ResultRow) -> list[str]:
        """Return a row as text: name, percentages with one decimal, seconds and note."""
        figures = [f"{100 * row.figures[name]:.1f}" if name in row.figures else "" for name in self.columns]
        return [row.name, *figures, "" if row.seconds is None else f"{row.seconds:.2f}", row.note]

    @property
    def headings(self) -> list[str]:
        """The columns' headings."""
        return ["model", *map(_heading, self.columns), "seconds", "note"]

    def rich(self, title: str | None = None) -> Table:
        """Return the table for a terminal."""
        table = Table(title=None if title is None else Text(title), header_style="bold", pad_edge=False)
        for index, heading in enumerate(self.headings):
            text = index in (0, len(self.headings) - 1)
            table.add_column(Text(heading.replace(" ", "\n")), justify="left" if text else "right", no_wrap=text)
        for row in self.rows:
            table.add_row(*map(Text, self.cells(row)))  # as they are: a name may look like markup
        return table

    def markdown(self) -> str:
        """Return the table in Markdown."""
        rows = ([_literal(cell) for cell in self.cells(row)] for row in self.rows)
        return markdown_table([_literal(heading) for heading in self.headings], rows)

    def csv(self) -> str:
        """Return the table as CSV, with fractions in full precision."""
        headings, text = ["model", *self.columns, "seconds", "note"], io.StringIO()
        rows = [[row.name, *map(row.figures.get, self.columns), row.seconds, row.note] for row in self.rows]
        csv.writer(text, lineterminator="\n").writerows([headings, *rows])
        return text.getvalue()


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, of cells in Markdown."""
    first, *others = ("|" + "|".join(f" {cell} " for cell in line) + "|" for line in (headings, *rows))
    return "\n".join([first, "|" + "---|" * len(headings), *others])


def print_table(table: Table, console: Console) -> None:
    """Print a table in full: where the terminal is narrower the terminal wraps it, so that no figure is cut off."""
    needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.width = max(console.width, needed)
    console.print(table)


def _literal(cell: str) -> str:
    """Return text as Markdown that shows it as it is, on one line."""
    return re.sub(r"([\\|*`<$~\[\]])", r"\\\1", " ".join(cell.splitlines()))


def _heading(figure: str) -> str:
    name = LoaderName.of_figure(figure)
    return f"{name.domain.upper()} {name.name}" if name.is_average else f"{name.domain} {name.name.replace('_', ' ')}"
