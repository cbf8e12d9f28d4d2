"""A report in Markdown, whose figures stand beside it."""

from __future__ import annotations

from collections.abc import Sequence

from lwptv_lightning.registry import literal, markdown_table
from lwptv_lightning.report.document import Block, Cells, Picture, Section, Words

FIGURES = "figures"
"""The folder of the figures."""


def markdown_of(title: str, sections: Sequence[Section], run: str) -> str:
    r"""Return a report in Markdown; whatever is in names is shown and does nothing.

    Example:
        >>> markdown_of("*Mine*", [Section("", [Words("Take it.")])], "0af3")
        '# \\*Mine\\*\n\n<!-- run 0af3 -->\n\nTake it.\n'
    """
    lines = [heading_of(title), mark_of(run)]
    for section in sections:
        lines += [f"## {literal(section.title)}"] if section.title else []
        lines += map(_block, section.blocks)
    return "\n\n".join(lines) + "\n"


def heading_of(title: str) -> str:
    """Return the first line, by which a report of its kind is known."""
    return f"# {literal(title)}"


def mark_of(run: str) -> str:
    """Return the line by which the report of a run is known, which is not shown."""
    return f"<!-- run {run} -->"


def _block(block: Block) -> str:
    if isinstance(block, Words):
        return literal(block.text)
    if isinstance(block, Picture):
        picture = f"![{literal(block.alt)}]({FIGURES}/{block.name}.png)"
        return f"{picture}\n\n{literal(block.caption)}" if block.caption else picture
    return f"{literal(block.caption)}:\n\n{_table(block)}"


def _table(cells: Cells) -> str:
    rows = []
    for number, row in enumerate(cells.rows):
        shown = [literal(cell) for cell in row]
        rows.append([f"**{cell}**" if cell and number in cells.marked else cell for cell in shown])
    return markdown_table([literal(heading) for heading in cells.headings], rows)
