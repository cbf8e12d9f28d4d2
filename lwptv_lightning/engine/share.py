"""The part of a model's tensors that one of several processes works on; by default there is one, which has all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Value = TypeVar("Value")


def _alone(value: Any) -> list[Any]:
    return [value]


@dataclass(frozen=True)
class Share:
    """Which tensors this process reads, and how it learns what the others found in theirs.

    Nothing here knows how processes talk; see `lwptv_lightning.distributed`.

    Attributes:
        names: The tensors; ``None`` is all.
        exchange: Returns what each process gave it, in the processes' order. Every process must call it.

    Example:
        >>> Share().own(["w", "b"]), Share(frozenset({"b"})).own(["w", "b"])
        (('w', 'b'), ('b',))
    """

    names: frozenset[str] | None = None
    exchange: Callable[[Any], list[Any]] = _alone

    def own(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return those of the names that are this process's, in order."""
        return tuple(name for name in names if self.names is None or name in self.names)

    def each(self, names: Iterable[str], compute: Callable[[str], Value]) -> dict[str, Value]:
        """Compute something of each tensor, where it belongs, and return it on every process, in the order of names."""
        names = tuple(names)
        return self.join({name: compute(name) for name in self.own(names)}, names)

    def join(self, own: Mapping[str, Value], names: Iterable[str]) -> dict[str, Value]:
        """Return what all processes have found, each of its own tensors, in the order of names."""
        found: Mapping[str, Value] = {name: value for part in self.exchange(dict(own)) for name, value in part.items()}
        return {name: found[name] for name in names}


WHOLE = Share()
"""That of a process which works alone."""
