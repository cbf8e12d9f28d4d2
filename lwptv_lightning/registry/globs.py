"""Glob patterns of the names of tensors and layers."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from lwptv_lightning.registry.errors import UnknownNameError


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of some globs, in which case counts.

    Example:
        >>> matches("head.weight", ["norm.*", "head.*"]), matches("head.weight", [])
        (True, False)
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def require_matches(kind: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raise `UnknownNameError` for the first of some globs that matches none of the names.

    Args:
        kind: What a pattern is, for the message, such as ``"exclude pattern"``.
        patterns: The globs.
        names: The names that exist.
    """
    names = tuple(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UnknownNameError(kind, pattern, names)
