"""Cells of tables for a terminal."""

from __future__ import annotations

from rich.text import Text

from lwptv_lightning.registry import printable

_MARKUP = frozenset("[]\\:")
"""What begins markup, ends it or hides it from rich, and its codes of emoji."""


def cell(text: str) -> str | Text:
    """Return text of any characters as a cell of a table that shows it; what could be markup is none.

    Example:
        >>> cell("fc"), cell("[/x]")
        ('fc', <text '[/x]' [] ''>)
    """
    text = printable(text)
    return text if _MARKUP.isdisjoint(text) else Text(text)
