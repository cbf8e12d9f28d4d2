"""Registries of names, globs over names, and errors that say what was given, what is known and what is near."""

import difflib
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase, translate
from functools import partial
from typing import Generic, TypeVar

from lwptv_lightning.registry.given import shown
from lwptv_lightning.registry.text import printable_name

Record = TypeVar("Record")
_LONGEST = 500
"""Characters of a name beyond which nothing is near it."""
_WILD = re.compile(r"[*?[]")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the hint that ends an error message about an unknown name; empty where no known one is near.

    Example:
        >>> nearest("modul", ["block", "module", "tensor"])
        " Did you mean 'module'?"
    """
    if not isinstance(name, str) or len(name) > _LONGEST:
        return ""
    lowered = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    return f" Did you mean {shown(lowered[close[0]])}?" if close else ""


_LISTED = 60
"""Names that an error lists; of more than twice as many, the first ones."""


class UnknownNameError(KeyError, ValueError):
    """A name that is not among the known ones; both a failed look-up and a wrong value.

    Args:
        kind: What the name was meant to name, for example ``"merging rule"``.
        name: The name that was given.
        known: The names that exist.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = tuple(known)
        most = _LISTED if len(known) > 2 * _LISTED else len(known)
        listed = ", ".join(map(printable_name, known[:most])) or "none"
        more = f" and {len(known) - most} more" if len(known) > most else ""
        self.message = f"unknown {kind} {shown(name)}.{nearest(name, known)} Known: {listed}{more}."
        super().__init__(kind, name, known)

    def __str__(self) -> str:
        return self.message


def require_known(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise `UnknownNameError` unless ``name`` is among ``known``."""
    known = known if isinstance(known, Collection) else tuple(known)
    if not isinstance(name, Hashable) or name not in known:
        raise UnknownNameError(kind, name, known)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is or matches one of some globs, in which case counts; so a name with brackets is its own glob."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return what tells whether a name is or matches one of some globs, for many names.

    Example:
        >>> [name for name in ("head.bias", "fc.bias") if matcher(["head.*"])(name)]
        ['head.bias']
    """
    patterns = frozenset(patterns)
    wild = [translate(pattern) for pattern in patterns if _WILD.search(pattern)]
    found = re.compile("|".join(wild)).match if wild else None
    return lambda name: name in patterns or (found is not None and found(name) is not None)


def first_match(patterns: Iterable[str]) -> Callable[[str], str | None]:
    """Return what tells the first of some globs that a name is or matches, for many names and many globs.

    Example:
        >>> list(map(first_match(["head.bias", "head.*"]), ("head.bias", "head.weight", "fc.bias")))
        ['head.bias', 'head.*', None]
    """
    position = {pattern: number for number, pattern in enumerate(dict.fromkeys(patterns))}
    # Not a nested function, which those who keep it could not be pickled with.
    return partial(_first_match, position, [pattern for pattern in position if _WILD.search(pattern)])


def _first_match(position: Mapping[str, int], wild: Iterable[str], name: str) -> str | None:
    own = position.get(name, len(position))
    earlier = (pattern for pattern in wild if position[pattern] < own and fnmatchcase(name, pattern))
    return next(earlier, name if name in position else None)


def require_matches(kind: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raise `UnknownNameError` for the first of some globs that matches none of the names."""
    names = dict.fromkeys(names)
    for pattern in patterns:
        if pattern not in names and not any(map(matcher([pattern]), names)):
            raise UnknownNameError(kind, pattern, names)


class Registry(Mapping[str, Record], Generic[Record]):
    """A mapping from name to record, of the ``kind`` in its messages, that refuses duplicates and suggests the nearest.

    Example:
        >>> scores = Registry[float]("score")
        >>> scores.register("mean_abs", 1.0)
        1.0
        >>> scores["mean_ab"]
        Traceback (most recent call last):
        lwptv_lightning.registry.lookup.UnknownNameError: unknown score 'mean_ab'. Did you mean 'mean_abs'? ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._records: dict[str, Record] = {}

    def register(self, name: str, record: Record) -> Record:
        """Add a record under a new name and return it.

        A class or function that is defined again, as when a notebook's cell runs twice, takes its own place.
        """
        known = self._records.get(name, record)
        if any(getattr(known, part, known) != getattr(record, part, record) for part in ("__module__", "__qualname__")):
            raise ValueError(f"the {self.kind} {name!r} is registered already, as {known!r}.")
        self._records[name] = record
        return record

    def __getitem__(self, name: str) -> Record:
        require_known(self.kind, name, self._records)
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)
