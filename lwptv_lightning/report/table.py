"""Tables of figures that are there already: on a terminal, in Markdown and in CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Group
from rich.table import Table

from lwptv_lightning.registry import LoaderName, encodable, literal, markdown_table, printable, printable_name
from lwptv_lightning.report.layout import WIDTH, laid_out

_NUMBER = re.compile(r"[+-]\d+(\.\d+)?")
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001
"""What a spreadsheet takes for the beginning of a formula, or reads past."""


@dataclass(frozen=True)
class ResultRow:
    """The figures of one model.

    Attributes:
        name: What the model is.
        figures: Loader name or an average's, such as ``ood/avg``, to a fraction in [0, 1], or to another number.
        seconds: How long the merge took; ``None`` where nothing was merged.
        note: What stands beside the averages, such as a range.
        plain: Names of figures that are no fractions, such as errors, and are shown as they are.
    """

    name: str
    figures: Mapping[str, float]
    seconds: float | None = None
    note: str = ""
    plain: Collection[str] = ()


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

    def of_averages(self) -> ResultTable:
        """Return the table without the figures of single loaders."""
        averages = [name for name in self.columns if LoaderName.of_figure(name).is_average]
        kept = [{name: row.figures[name] for name in averages if name in row.figures} for row in self.rows]
        return ResultTable([replace(row, figures=figures) for row, figures in zip(self.rows, kept, strict=True)])

    def values(self) -> list[dict[str, Any]]:
        """Return the rows as plain values: name, figures, seconds and note."""
        return [
            {
                "name": row.name,
                "figures": {name: row.figures[name] for name in self.columns if name in row.figures},
                "seconds": row.seconds,
                "note": row.note,
            }
            for row in self.rows
        ]

    @property
    def sets(self) -> dict[str, int]:
        """Each average's name to how many sets it is over, as far as their figures are here."""
        over = {name: LoaderName.of_figure(name).over for name in self.columns}
        alone = [name for name in over if over[name] is None]
        found = {}
        for name, domain in over.items():
            if domain is not None and name.startswith(f"{domain}/avg"):
                part = name.removeprefix(f"{domain}/avg")  # of a metric with several
                found[name] = sum(each.startswith(f"{domain}/") and each.endswith(part) for each in alone)
        return {name: count for name, count in found.items() if count}

    def cells(self, row: ResultRow) -> list[str]:
        """Return a row as text: name, percentages with one decimal and other numbers, seconds and note."""
        figures = [_number(row, name) if name in row.figures else "" for name in self.columns]
        return [row.name, *figures, "" if row.seconds is None else f"{row.seconds:.2f}", row.note]

    @property
    def headings(self) -> list[str]:
        """The columns' headings."""
        return ["model", *map(_heading, self.columns), "seconds", "note"]

    def rich(self, title: str | None = None, wide: bool = False, width: int = WIDTH) -> Table | Group:
        """Return the table for a terminal, as wide as all its columns or no wider than there is room.

        Where there is too little room for all, sets are folded into their averages, which say of how many they are, and
        long names lack their middle. Where even these take too much, they follow each other in several blocks.

        Args:
            title: What stands above.
            wide: Whether to show every column at full length, however wide that is.
            width: How many columns of a terminal there are.
        """
        return laid_out(self, title, None if wide else width)

    def markdown(self) -> str:
        """Return the table in Markdown."""
        rows = ([literal(cell) for cell in _shown(self.cells(row))] for row in self.rows)
        return markdown_table([literal(printable_name(heading)) for heading in self.headings], rows)

    def csv(self) -> str:
        """Return the table as CSV, with fractions in full precision.

        Names are as they are, but that what a spreadsheet would take for a formula has an apostrophe before it, and
        lone surrogates, which no file can hold, are Python's escapes.
        """
        lines: list[list[Any]] = [["model", *self.columns, "seconds", "note"]]
        lines += [[row.name, *map(row.figures.get, self.columns), row.seconds, row.note] for row in self.rows]
        return "".join(map(csv_line, lines))


def _number(row: ResultRow, name: str) -> str:
    return f"{row.figures[name]:.4g}" if name in row.plain else percent(row.figures[name])


def percent(value: float) -> str:
    """Return a fraction in percent; the same for what was computed in single and in double precision.

    Example:
        >>> percent(0.2375), percent(0.23749999701976776)
        ('23.8', '23.8')
    """
    return f"{round(100 * value, 4):.1f}"


def _shown(cells: list[str]) -> list[str]:
    """Return a row's cells as they are shown, a note at full length."""
    return [*map(printable_name, cells[:-1]), printable(cells[-1])]


def csv_line(cells: list[Any]) -> str:
    """Return a line of CSV, with quotation marks around whatever ends a line for any reader."""
    text = io.StringIO()
    inert = [_inert(cell) if isinstance(cell, str) else cell for cell in cells]
    csv.writer(text, lineterminator="\r\n").writerow(inert)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _inert(cell: str) -> str:
    """Return a cell's text so that no spreadsheet computes it."""
    is_formula = cell.startswith(_FORMULA) and not _NUMBER.fullmatch(cell)
    return encodable(f"'{cell}" if is_formula else cell)


def _heading(figure: str) -> str:
    name = LoaderName.of_figure(figure)
    return name.heading if name.is_average else name.heading.replace("_", " ")
