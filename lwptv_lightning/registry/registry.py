"""Named records: register once, look up by name, and hear the nearest name when none matches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from lwptv_lightning.registry.errors import require_known

Record = TypeVar("Record")


class Registry(Mapping[str, Record], Generic[Record]):
    """A mapping from name to record that refuses duplicates and suggests the nearest name.

    Args:
        kind: What it holds, in the singular; used in error messages.

    Example:
        >>> scores = Registry[float]("score")
        >>> scores.register("mean_abs", 1.0)
        1.0
        >>> scores["mean_ab"]
        Traceback (most recent call last):
        lwptv_lightning.registry.errors.UnknownNameError: unknown score 'mean_ab'. Did you mean 'mean_abs'? ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._records: dict[str, Record] = {}

    def register(self, name: str, record: Record) -> Record:
        """Add a record under a new name and return it.

        A class or function that is defined again, as when a notebook's cell runs twice, takes its own place.

        Raises:
            ValueError: The name is taken by something else.
        """
        if name in self._records and not _is_same_definition(record, self._records[name]):
            raise ValueError(f"the {self.kind} {name!r} is registered already, as {self._records[name]!r}.")
        self._records[name] = record
        return record

    def __getitem__(self, name: str) -> Record:
        require_known(self.kind, name, self._records)
        return self._records[name]

    def __contains__(self, name: object) -> bool:
        return name in self._records

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


def _is_same_definition(first: object, second: object) -> bool:
    """Tell whether two classes or functions come from the same place in the source."""
    places = [(getattr(item, "__module__", None), getattr(item, "__qualname__", None)) for item in (first, second)]
    return places[0] == places[1] and None not in places[0]
