"""Long work that says how far it is, to whoever watches; where nobody does, that costs next to nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeAlias, TypeVar

Item = TypeVar("Item")


class Advance(Protocol):
    """Takes how many steps are done since it was last called, and what the work is now, where that is new."""

    def __call__(self, steps: float = 1, what: str | None = None) -> None:
        """Say so."""


Watcher: TypeAlias = Callable[[str, float | None], AbstractContextManager[Advance]]
"""Takes what is done and in how many steps, where that is known, and gives what the steps are told to."""

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watching(watcher: Watcher | None) -> Iterator[None]:
    """Let someone watch all `work` in the block; None: nobody."""
    before = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(before)


@contextmanager
def work(what: str, total: float | None = None) -> Iterator[Advance]:
    """Do something long, and say how far it is.

    Args:
        what: What is done, in few words.
        total: In how many steps; None where that is not known.

    Example:
        >>> from contextlib import nullcontext
        >>> with watching(lambda what, total: nullcontext(lambda steps=1, now=None: print(what, steps, "of", total))):
        ...     with work("Reading", total=8) as advance:
        ...         advance(5)
        Reading 5 of 8
    """
    watcher = _watcher.get()
    if watcher is None:
        yield _unwatched
        return
    with watcher(what, total) as advance:
        yield advance


def steps_of(
    items: Iterable[Item], what: str, total: float | None = None, steps: Callable[[Item], float] = lambda item: 1
) -> Iterator[Item]:
    """Give items one by one, as `work` of which each is a step, or several."""
    with work(what, total) as advance:
        for item in items:
            yield item
            advance(steps(item))


def leads() -> bool:
    """Tell whether this process is the one of several that speaks for all, or the only one.

    Of processes that a launcher started, the environment says so before they have met.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_rank() == 0)
    return all(os.environ.get(name, "0") in ("", "0") for name in _RANKS)


_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def _unwatched(steps: float = 1, what: str | None = None) -> None:
    """Nobody is told."""
