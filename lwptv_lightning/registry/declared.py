"""Hyper-parameters that know their range: declared once, checked on construction, listed in the docs.

A rule declares ``density: float = number(0.2, "(0, 1]")``; `check_parameters` raises for values outside.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lwptv_lightning.registry.errors import require_known


def number(default: float, interval: str) -> Any:
    """Declare a real number in an interval such as ``"(0, 1]"``; a round bracket excludes the end.

    Example:
        >>> from lwptv_lightning.rules._base import get_rule
        >>> get_rule("ties")(density=20)
        Traceback (most recent call last):
        ValueError: density must be a number in (0, 1], not 20.
    """
    low, high = (float(end) for end in interval.strip("([])").split(","))

    def check(name: str, value: Any) -> float:
        above = low < value if interval[0] == "(" else low <= value
        below = value < high if interval[-1] == ")" else value <= high
        if not (above and below):
            raise ValueError(f"{name} must be a number in {interval}, not {value}.")
        return float(value)

    return _field(default, interval, lambda name, value: check(name, _real(name, value)))


def whole(default: int, at_least: int = 0) -> Any:
    """Declare a whole number with a lower bound."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, not {value!r}.")
        if value < at_least:
            raise ValueError(f"{name} must be at least {at_least}, not {value}.")
        return value

    return _field(default, f"{at_least}, {at_least + 1}, ...", check)


def flag(default: bool) -> Any:
    """Declare a switch."""

    def check(name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be true or false, not {value!r}.")
        return value

    return _field(default, "true, false", check)


def choice(default: str, options: Sequence[str]) -> Any:
    """Declare one of several names."""

    def check(name: str, value: Any) -> str:
        require_known(name, value, options)
        return str(value)

    return _field(default, ", ".join(options), check)


def per_task(default: None = None) -> Any:
    """Declare an optional finite number for each task, in the order of the tasks."""

    def check(name: str, value: Any) -> tuple[float, ...] | None:
        return None if value is None else tuple(_real(name, item) for item in _items(name, value))

    return _field(default, "one number per task", check)


def per_task_by_tensor(default: None = None) -> Any:
    """Declare an optional mapping of globs of tensor names to a finite number for each task."""

    def check(name: str, value: Any) -> dict[str, tuple[float, ...]] | None:
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise TypeError(f"{name} must map globs of tensor names to numbers, not be a {type(value).__name__}.")
        return {
            str(key): tuple(_real(f"{name}[{key!r}]", item) for item in _items(name, items))
            for key, items in value.items()
        }

    return _field(default, "one number per task for each glob", check)


def patterns(default: tuple[str, ...] | None) -> Any:
    """Declare glob patterns of tensor names; ``None`` where a rule has a choice of its own."""

    def check(name: str, value: Any) -> tuple[str, ...] | None:
        return None if value is None and default is None else tuple(str(item) for item in _items(name, value))

    return _field(default, "globs", check)


def check_parameters(rule: Any) -> None:
    """Check every declared hyper-parameter of a frozen dataclass and store it in its plain form.

    Raises:
        ValueError: A value is outside its range.
        TypeError: A value is of the wrong kind.
    """
    for field in dataclasses.fields(rule):
        if check := field.metadata.get("check"):
            object.__setattr__(rule, field.name, check(field.name, getattr(rule, field.name)))


def require_per_task(name: str, values: Sequence[float], tasks: Sequence[str]) -> None:
    """Raise unless there is one value for each task."""
    if len(values) != len(tasks):
        raise ValueError(f"{name} holds {len(values)} values, expected one for each of {len(tasks)} tasks.")


def _field(default: Any, allowed: str, check: Callable[[str, Any], Any]) -> Any:
    return dataclasses.field(default=default, metadata={"range": allowed, "check": check})


def _real(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r}.")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value}.")
    return value


def _items(name: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence, not {value!r}.")
    return value
