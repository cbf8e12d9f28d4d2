"""Tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def print_table(table: Table, console: Console) -> None:
    """Print a table in full: where the terminal is narrower the terminal wraps it, so that no figure is cut off."""
    needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.width = max(console.width, needed)
    console.print(table)
