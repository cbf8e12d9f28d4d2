"""A report as one HTML file, which needs no network, no script and no other file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from lwptv_lightning.registry import printable
from lwptv_lightning.report.document import Block, Cells, Picture, Section, Words
from lwptv_lightning.report.style import STYLE_SHEET

MARK = "<!-- A report of lwptv-lightning -->"
"""The second line, by which such a file is known."""

_FEW = 8
"""Columns that most pages have room for."""


def html_of(title: str, sections: Sequence[Section]) -> str:
    """Return a report as HTML; whatever is in names is shown and does nothing.

    Example:
        >>> "<h1>&lt;b&gt;</h1>" in html_of("<b>", [])
        True
    """
    name = _text(title)
    body = "\n".join(_section(number, section) for number, section in enumerate(sections))
    return f"""<!DOCTYPE html>
{MARK}
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{name}</title>
<style>{STYLE_SHEET}</style>
</head>
<body>
<main>
<h1>{name}</h1>
{body}
</main>
</body>
</html>
"""


def _text(text: str) -> str:
    return escape(printable(text))


def _section(number: int, section: Section) -> str:
    blocks = "\n".join(map(_block, section.blocks))
    if not section.title:
        return f'<div class="conclusion">\n{blocks}\n</div>'
    label = f"part-{number}"
    heading = f'<h2 id="{label}">{_text(section.title)}</h2>'
    return f'<section aria-labelledby="{label}">\n{heading}\n{blocks}\n</section>'


def _block(block: Block) -> str:
    if isinstance(block, Words):
        return f"<p>{_text(block.text)}</p>"
    return _table(block) if isinstance(block, Cells) else _figure(block)


def _table(cells: Cells) -> str:
    kinds = [' class="words"' if column in cells.words else "" for column in range(len(cells.headings))]
    headings = "".join(
        f'<th scope="col"{kind}>{_text(heading)}</th>' for kind, heading in zip(kinds, cells.headings, strict=True)
    )
    rows = []
    for number, row in enumerate(cells.rows):
        marked = ' class="chosen"' if number in cells.marked else ""
        first, *others = (_text(cell) for cell in row)
        filled = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds[1:], others, strict=True))
        rows.append(f'<tr{marked}><th scope="row">{first}</th>{filled}</tr>')
    caption = _text(cells.caption)
    body = "\n".join(rows)
    many = ' class="many"' if len(cells.headings) > _FEW else ""
    # A table that is wider than the page is scrolled by itself, with the keyboard too.
    return f"""<div class="wide" role="group" aria-label="{caption}" tabindex="0">
<table{many}>
<caption>{caption}</caption>
<thead><tr>{headings}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>"""


def _figure(picture: Picture) -> str:
    wide, high = picture.size
    # On a narrow screen it is scrolled rather than made too small to be read.
    shape = f'width="{wide}" height="{high}" style="min-width: min({wide}px, 46rem)" alt="{_text(picture.alt)}"'
    # Both are there, and the style sheet shows one: what a source of <picture> chose on a screen would be printed too.
    images = "\n".join(
        f'<img class="on-{ground}" src="data:image/svg+xml;base64,{b64encode(svg).decode()}" {shape}>'
        for ground, svg in (("light", picture.light), ("dark", picture.dark))
    )
    return f"""<figure>
<div class="wide" role="group" aria-label="{_text(picture.title)}" tabindex="0">
{images}
</div>
<figcaption>{_text(picture.caption)} Data: <code>figures/{_text(picture.name)}.csv</code></figcaption>
</figure>"""
