"""Tables and sentences on a terminal, whatever characters are in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from lwptv_lightning.registry import any_character, printable, shortened
from lwptv_lightning.report.layout import WIDTH


def room_of(console: Console) -> int:
    """Return how many columns a table may take: a terminal's, but no more than `WIDTH`, which a file has as well."""
    return min(console.width, WIDTH) if console.is_terminal else WIDTH


def print_table(table: RenderableType, console: Console, *, wide: bool = False) -> None:
    """Print a table within the room that there is: columns that find none follow in further blocks, none is cut off.

    Args:
        table: What to print.
        console: Where to.
        wide: Whether the table may be as wide as it is: where the terminal is narrower, the terminal wraps it.
    """
    blocks = blocks_of(table, console, room_of(console)) if isinstance(table, Table) and not wide else [table]
    before = console.width
    try:
        for block in blocks:
            needed = console.measure(block, options=console.options.update(max_width=10_000))
            console.width = needed.maximum if wide else max(needed.minimum, min(needed.maximum, room_of(console)))
            with any_character(console.file):
                console.print(block)
            console.width = before
    finally:
        console.width = before


def blocks_of(table: Table, console: Console, room: int) -> list[Table]:
    """Return a table in parts that are no wider than there is room, each with the first column; one, where it is not.

    Text wraps at its spaces; a column of it takes part of the room only, so that it reads.
    """
    if sum(_AROUND + _least(column, console, room) for column in table.columns) <= room:
        return [table]
    first, *others = table.columns
    own = _least(first, console, room)
    parts, taken = [[first]], own
    for column in _with_short_headings(others):
        least = _AROUND + _least(column, console, room)
        if len(parts[-1]) > 1 and taken + least > room - 1:
            parts.append([first])
            taken = own
        parts[-1].append(column)
        taken += least
    return [_part(table, columns, place, len(parts)) for place, columns in enumerate(parts)]


def _with_short_headings(columns: Sequence[Column]) -> list[Column]:
    """Return columns whose headings are no wider than what numbers take, as long as they still are different."""
    names = [str(column.header) for column in columns]
    short = [shortened(name, _HEADING) for name in names]
    if len({*short}) < len({*names}):
        return list(columns)
    return [
        column if name == own else replace(column, header=Text(name))
        for column, name, own in zip(columns, short, names, strict=True)
    ]


_AROUND = 3
"""A line and a space on both sides of it."""
_HEADING = 12
_TEXT = 2 / 5
"""How much of the room a column of text gets at least."""


def _least(column: Column, console: Console, room: int) -> int:
    options = console.options.update(max_width=10_000)
    widths = [Measurement.get(console, options, each) for each in (column.header, *column.cells)]
    longest = max((width.maximum for width in widths), default=0)
    return longest if column.no_wrap or column.justify == "right" else min(longest, int(room * _TEXT))


def _part(table: Table, columns: Sequence[Column], place: int, of: int) -> Table:
    part = Table(
        *(column.copy() for column in columns),
        title=None if place else table.title,
        caption=table.caption if place == of - 1 else None,
        box=table.box,
        header_style=table.header_style,
        pad_edge=table.pad_edge,
    )
    for cells in zip(*(column.cells for column in columns), strict=True):
        part.add_row(*cells)
    return part


def print_text(text: str, console: Console) -> None:
    r"""Print lines whose names may look like mark-up; all but the ends of lines is `printable`.

    Example:
        >>> print_text("[b] \x1b is\nText", Console())
        [b] \x1b is
        Text
    """
    with any_character(console.file):
        console.print(Text("\n".join(map(printable, text.split("\n")))), soft_wrap=True)
