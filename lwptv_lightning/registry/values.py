"""Single values as people give them: checked, read, and frozen where a hash is needed."""

import re
import sys
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NoReturn, TypeVar

from lwptv_lightning.registry.given import shown

Value = TypeVar("Value")

_MOST_BITS = 1024
"""Those of the largest whole number; Python writes none of some thousand digits."""
_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{binary}b": (1024 if binary else 1000) ** power
    for power, prefix in enumerate("kmgt", start=1)
    for binary in ("", "i")
}


def require_finite(name: str, value: Any) -> float:
    """Return a finite number, or raise."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {shown(value)}.")
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise ValueError(f"{name} must be finite, not {shown(value)}.")
    return float(value)


def require_whole(name: str, value: Any, at_least: int | None = None) -> int:
    """Return a whole number, not below a bound if there is one, or raise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {shown(value)}.")
    if at_least is not None and value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, not {shown(value)}.")
    if value.bit_length() > _MOST_BITS:
        raise ValueError(f"{name} must be a number of some hundred digits at most, not {shown(value)}.")
    return value


def require_ratio(ratio: float, name: str = "ratio") -> float:
    """Return a number in [0, 1], or raise."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float):
        raise TypeError(f"{name} must be a number in [0, 1], not {shown(ratio)}.")
    if not 0 <= ratio <= 1:
        raise ValueError(f"{name} must lie in [0, 1], not {shown(ratio)}; it is a fraction, not percent.")
    return float(ratio)


def require_per_task(name: str, values: Sequence[float], tasks: Sequence[str]) -> None:
    """Raise unless there is one value for each task."""
    if len(values) != len(tasks):
        raise ValueError(f"{name} holds {len(values)} values, expected one for each of {len(tasks)} tasks.")


def parse_bytes(what: str, value: int | str) -> int:
    """Read a number of bytes above 0: a whole number, or a number with a unit; ``what`` is its name in the message.

    Example:
        >>> parse_bytes("max_memory", "1.5KiB"), parse_bytes("max_memory", "2 MB")
        (1536, 2000000)
    """
    text = value if isinstance(value, str) else shown(int(value) if isinstance(value, Integral) else value)
    match = re.fullmatch(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*(\w*)\s*", text)
    size = 0 if isinstance(value, bool) or not match else int(float(match[1]) * _UNITS.get(match[2].lower(), 0))
    if size < 1:
        raise ValueError(f"{what} must be a number of bytes above 0 such as 512MB or 2GiB, not {shown(value)}.")
    return size


class FrozenDict(dict[str, Value]):
    """A dict that stays as it is, so that what holds it can be hashed; two are equal if their order is too."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FrozenDict) and list(self) != list(other):
            return False
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __reduce__(self) -> tuple[type, tuple[dict[str, Value]]]:  # pickle would fill an empty one
        return type(self), (dict(self),)

    def _refuse(self, *arguments: Any, **values: Any) -> NoReturn:
        raise TypeError("this mapping is part of a frozen object; make a new one instead of changing it.")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse  # type: ignore
