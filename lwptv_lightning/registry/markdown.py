"""Names and tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lwptv_lightning.registry.text import printable

_SPECIAL = re.compile(
    r"[\\|*`<>&$~\[\]#@]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # which marks nothing inside of a word
    r"|:(?=//)|(?<=\bwww)\.",  # by which addresses become links without more
    re.IGNORECASE,
)


def literal(text: str) -> str:
    r"""Return Markdown that shows text as `printable` has it: no mark-up, HTML, formula, link or second line.

    Example:
        >>> print(literal("a_b|c <img src=x> [d](e)"))
        a_b\|c \<img src=x\> \[d\](e)
    """
    return _SPECIAL.sub(r"\\\g<0>", printable(text))


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, of cells in Markdown."""
    first, *others = ("|" + "|".join(f" {cell} " for cell in line) + "|" for line in (headings, *rows))
    return "\n".join([first, "|" + "---|" * len(headings), *others])
