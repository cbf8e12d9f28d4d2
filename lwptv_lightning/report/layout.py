"""How a table of figures is put on a terminal: all of it where there is room, and what says most where there is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lwptv_lightning.registry import DOMAINS, LoaderName, printable, printable_name, shortened, width_of

if TYPE_CHECKING:
    from lwptv_lightning.report.table import ResultTable

WIDTH = 100
"""The columns of a terminal that a table takes at most, unless all of it is asked for."""
_NAMES = (60, 40, 24)
"""How much room names get, while there is enough for the rest."""
_NOTE = 24
_LEAST = 8


@dataclass(frozen=True)
class _Column:
    """A column: what stands above it, line by line, its cells, and whether these are text that may be wrapped."""

    lines: tuple[str, ...]
    cells: tuple[str, ...]
    is_text: bool = False

    @property
    def width(self) -> int:
        return max(map(width_of, (*self.lines, *self.cells)), default=0)

    def least(self, room: int) -> int:
        """Return how wide it is at least where so much room is for all; text is wrapped."""
        return min(self.width, _NOTE, max(_LEAST, room // 3)) if self.is_text else self.width


def laid_out(table: ResultTable, title: str | None, width: int | None) -> Table | Group:
    """Return a table for a terminal of so many columns; None: as wide as it is."""
    name, figures, rest = _columns(table, list(table.columns), None)
    if width is None:
        return _table(title, [name, *figures, *rest], None)
    if _needed([name, *figures, *rest], width) <= width:
        return _table(title, [name, *figures, *rest], width)
    averages = [figure for figure in table.columns if LoaderName.of_figure(figure).is_average]
    name, figures, rest = _columns(table, averages or list(table.columns), table.sets)
    for most in _NAMES:
        short = _named(name, max(_LEAST, min(most, width // 2)))
        if _needed([short, *figures, *rest], width) <= width:
            return _table(title, [short, *figures, *rest], width)
    whole = [figure for figure, of in zip(figures, averages, strict=False) if LoaderName.of_figure(of).over in DOMAINS]
    blocks = _blocks(short, [*whole, *(figure for figure in figures if figure not in whole), *rest], width)
    tables = [_table(None if place else title, block, width) for place, block in enumerate(blocks)]
    return tables[0] if len(tables) == 1 else Group(*tables)


def _columns(
    table: ResultTable, figures: Sequence[str], sets: dict[str, int] | None
) -> tuple[_Column, list[_Column], list[_Column]]:
    """Return the columns of names, of some figures, and of what stands behind them; those that hold nothing are out."""
    rows = [table.cells(row) for row in table.rows]
    headings = dict(zip(table.columns, table.headings[1:-2], strict=True))
    found = []
    for figure in figures:
        lines = printable_name(headings[figure]).replace(" ", "\n").replace("/", "/\n").split("\n")
        if sets is not None:
            count = sets.get(figure)
            lines = [shortened(line, 12) for line in lines]
            lines += [] if count is None else [f"{count} set{'s'[: count != 1]}"]
        place = 1 + table.columns.index(figure)
        found.append(_Column(tuple(lines), tuple(printable_name(row[place]) for row in rows)))
    behind = [
        _Column(("seconds",), tuple(row[-2] for row in rows)),
        _Column(("note",), tuple(printable(row[-1]) for row in rows), is_text=True),
    ]
    names = _Column(("model",), tuple(printable_name(row[0]) for row in rows), is_text=True)
    return names, found, [column for column in behind if any(column.cells)]


def _named(names: _Column, most: int) -> _Column:
    """Return names of so many columns at most, as long as they still are different."""
    short = tuple(shortened(name, most) for name in names.cells)
    # Those that would be alike go on in a second line.
    return _Column(names.lines, short) if len({*short}) == len({*names.cells}) else names


def _blocks(name: _Column, others: Sequence[_Column], width: int) -> list[list[_Column]]:
    blocks = [[name]]
    for column in others:
        if len(blocks[-1]) > 1 and _needed([*blocks[-1], column], width) > width:
            blocks.append([name])
        blocks[-1].append(column)
    return blocks


def _needed(columns: Sequence[_Column], room: int) -> int:
    """Return how wide a table is: with a space on both sides of each column, and lines between and around them."""
    return sum(column.least(room) for column in columns) + 3 * len(columns) + 1


def _table(title: str | None, columns: Sequence[_Column], width: int | None) -> Table:
    table = Table(title=None if title is None else Text(printable(title)), header_style="bold")
    texts = [column for column in columns if column.is_text]
    spare = 0 if width is None else max(0, width - _needed(columns, width))
    for column in columns:
        most = None
        if column.is_text and width is not None:
            most = min(column.width, column.least(width) + spare)
            spare -= most - column.least(width)
        table.add_column(
            Text("\n".join(column.lines)),
            justify="left" if column in texts or column is columns[0] else "right",
            no_wrap=most is None or most >= column.width,
            overflow="fold",
            width=most,
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, cells))  # a name may look like markup
    return table
