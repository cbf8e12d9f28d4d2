"""Coefficients that act on what a rule makes of each task, by task and layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lwptv_lightning.registry import FrozenDict, require_finite, shown


def read_coefficients(name: str, value: Any) -> FrozenDict[FrozenDict[float]]:
    """Return coefficients of task and glob of layer names, checked, with the globs in their order.

    Example:
        >>> read_coefficients("coefficients", {"b": {"head": 0, "*": 0.5}, "a": {"*": 1}})
        {'a': {'*': 1.0}, 'b': {'head': 0.0, '*': 0.5}}
    """
    if not isinstance(value, Mapping) or not value:
        raise TypeError(f"{name} must map tasks to globs of layers with numbers, not be {shown(value)}.")
    # Tasks are sorted, because their order has no meaning and equal recipes are to be equal; that of globs has one.
    tasks = sorted((_key(name, task), _of_task(f"{name}[{shown(task)}]", own)) for task, own in value.items())
    return _frozen(name, tasks)


def _of_task(name: str, value: Any) -> FrozenDict[float]:
    if not isinstance(value, Mapping) or not value:
        raise TypeError(f"{name} must map globs of layers to numbers, not be {shown(value)}.")
    return _frozen(name, [(_key(name, glob), _number(f"{name}[{shown(glob)}]", item)) for glob, item in value.items()])


def _number(name: str, value: Any) -> float:
    number = require_finite(name, value)
    if number < 0:
        raise ValueError(f"{name} must be a number of at least 0, not {shown(value)}.")
    return number + 0.0  # there is one zero


def _key(name: str, value: Any) -> str:
    """Return a name; YAML reads that of a numbered one as a number."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"a name in {name} must be a text, not {shown(value)}.")
    return str(value)


def _frozen(name: str, items: list[tuple[str, Any]]) -> FrozenDict[Any]:
    found = FrozenDict(items)
    if len(found) < len(items):
        keys = [key for key, _ in items]
        raise ValueError(f"{name} names {shown(next(key for key in keys if keys.count(key) > 1))} twice.")
    return found
