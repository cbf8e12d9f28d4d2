"""Errors that name what was given, what is known and the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the hint that ends an error message about an unknown name.

    Args:
        name: What the caller gave.
        known: The names that exist.

    Returns:
        ``" Did you mean 'x'?"`` with the nearest known name, or ``""`` where none is near.

    Example:
        >>> nearest("modul", ["block", "module", "tensor"])
        " Did you mean 'module'?"
    """
    lowered = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    return f" Did you mean {lowered[matches[0]]!r}?" if matches else ""


class UnknownNameError(KeyError, ValueError):
    """A name that is not among the known ones; both a failed look-up and a wrong value.

    Args:
        kind: What the name was meant to name, for example ``"merging rule"``.
        name: The name that was given.
        known: The names that exist.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = tuple(known)
        self.message = f"unknown {kind} {name!r}.{nearest(str(name), known)} Known: {', '.join(known) or 'none'}."
        super().__init__(kind, name, known)

    def __str__(self) -> str:
        return self.message


def require_known(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise `UnknownNameError` unless ``name`` is among ``known``."""
    known = tuple(known)
    if name not in known:
        raise UnknownNameError(kind, name, known)
