"""How far long work is, on a terminal alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from lwptv_lightning.registry import Advance, leads, printable

AFTER = 1.5
"""Seconds after which work is long enough to be shown; what is shorter would flicker."""
_WORDS = 60
_shown: list[Progress] = []
"""What is on the terminal now: work within work is a further line of it."""


@contextmanager
def progress(
    what: str, total: float | None = None, *, console: Console | None = None, after: float = AFTER
) -> Iterator[Advance]:
    """Show a bar with the time left while the block runs, and nothing of it afterwards.

    Nothing is shown of short work, where the standard error is no terminal, and on all processes but the first. Calls
    of what is given cost some microseconds, so that they may be many.

    Args:
        what: What is done, in few words.
        total: How many steps that takes; None where it is not known.
        console: Where to show it; by default the standard error, so that the standard output holds results alone.
        after: How many seconds work takes before it is shown.

    Returns:
        A function ``advance(steps=1, what=None)``: steps are done, and what the work is now.

    Example:
        >>> with progress("Sweeping", total=180) as advance:
        ...     for recipe in range(180):
        ...         advance(what=f"Sweeping recipe {recipe}")
    """
    console = Console(stderr=True) if console is None else console
    if not leads() or not _is_watched(console):
        yield lambda steps=1, what=None: None
        return
    if _shown:
        with _line(_shown[0], what, total, after) as advance:
            yield advance
        return
    bar = Progress(*_columns(), console=console, transient=True, redirect_stdout=False)
    begin = Timer(after, bar.start)
    begin.daemon = True
    _shown.append(bar)
    begin.start()
    try:
        with _line(bar, what, total, 0) as advance:
            yield advance
    finally:
        _shown.clear()
        begin.cancel()
        begin.join()  # it may be starting just now
        if bar.live.is_started:
            bar.stop()


@contextmanager
def _line(bar: Progress, what: str, total: float | None, after: float) -> Iterator[Advance]:
    began = time.monotonic()
    # Work within work has a line once that takes long itself.
    task = bar.add_task(printable(what, _WORDS), total=total, visible=not after)

    def advance(steps: float = 1, what: str | None = None) -> None:
        given: dict[str, Any] = {} if what is None else {"description": printable(what, _WORDS)}
        bar.update(task, advance=steps, visible=time.monotonic() - began >= after, **given)

    try:
        yield advance
    finally:
        bar.remove_task(TaskID(task))


def _columns() -> tuple[Any, ...]:
    words = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True))
    return SpinnerColumn(), words, BarColumn(20), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn()


def _is_watched(console: Console) -> bool:
    """Whether someone sees a line change: rich takes a pipe for a terminal where the environment asks for colours."""
    try:
        return bool(console.file.isatty()) and not console.is_dumb_terminal
    except (AttributeError, ValueError):  # a stream that is none, or closed
        return False


def _without_bar() -> None:
    """Give a forked process, such as a loader's worker, the stream itself: who holds the bar's locks is not here."""
    stream = getattr(sys.stderr, "rich_proxied_file", None)
    if stream is not None:
        sys.stderr = stream


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_without_bar)
