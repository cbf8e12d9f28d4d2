"""Tables and sentences on a terminal, whatever characters are in them."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lwptv_lightning.registry import any_character, printable


def print_table(table: Table, console: Console) -> None:
    """Print a table in full: where the terminal is narrower the terminal wraps it, so that no figure is cut off."""
    needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.width = max(console.width, needed)
    with any_character(console.file):
        console.print(table)


def print_text(text: str, console: Console) -> None:
    r"""Print lines whose names may look like mark-up; all but the ends of lines is `printable`.

    Example:
        >>> print_text("[b] \x1b is\nText", Console())
        [b] \x1b is
        Text
    """
    with any_character(console.file):
        console.print(Text("\n".join(map(printable, text.split("\n")))))
