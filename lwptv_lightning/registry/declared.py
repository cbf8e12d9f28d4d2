"""Fields that know their range and meaning: declared once; checked on construction, listed in docs and help.

A rule declares ``density: float = number(0.2, "(0, 1]")``; `check_parameters` raises for values outside.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lwptv_lightning.registry.given import shown
from lwptv_lightning.registry.lookup import require_known
from lwptv_lightning.registry.values import FrozenDict, require_finite, require_ratio, require_whole

Made = TypeVar("Made")
Given = TypeVar("Given")
Held = TypeVar("Held")


class Converted(Generic[Given, Held]):
    """The annotation of a field that takes ``Given`` and, after its check, holds ``Held``."""

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: Any = None, /) -> Held: ...
        def __set__(self, instance: object, value: Given, /) -> None: ...

    else:

        def __class_getitem__(cls, types: tuple[Any, Any]) -> Any:
            """Return what it takes: parsers of configurations read annotations to make arguments."""
            return types[0]


def declared(
    default: Any,
    allowed: str,
    check: Callable[[str, Any], Any],
    help: str = "",
    word: Callable[[str], Any] | None = None,
) -> Any:
    """Declare a field of a dataclass whose values a function checks.

    Args:
        default: Its default; ``dataclasses.MISSING`` for none. Where it is ``None``, so may be the value.
        allowed: The range, in words.
        check: Gets the field's name and a value, and raises or returns the value as it is to be held.
        help: What the field means.
        word: Reads a value from a word of the command line; ``None`` where the field has no option of its own.
    """

    def check_given(name: str, value: Any) -> Any:
        return None if value is None and default is None else check(name, value)

    metadata = {"range": allowed, "check": check_given, "help": help, "word": word}
    return dataclasses.field(default=default, metadata=metadata)


def number(default: float | None, interval: str, help: str = "") -> Any:
    """Declare a real number in an interval such as ``"(0, 1]"``; a round bracket excludes the end."""
    low, high = (float(end) for end in interval.strip("([])").split(","))

    def check(name: str, value: Any) -> float:
        real = require_finite(name, value)
        at_open_end = (real == low and interval[0] == "(") or (real == high and interval[-1] == ")")
        if at_open_end or not low <= real <= high:
            raise ValueError(f"{name} must be a number in {interval}, not {shown(value)}.")
        return real

    return declared(default, interval, check, help, float)


def fraction(default: Any, help: str = "") -> Any:
    """Declare a fraction in [0, 1] that people may take for percent."""
    return declared(default, "[0, 1]", lambda name, value: require_ratio(value, name), help, float)


def whole(default: int | None, at_least: int | None = 0, help: str = "") -> Any:
    """Declare a whole number, with a lower bound if need be."""

    def check(name: str, value: Any) -> int:
        return require_whole(name, value, at_least)

    allowed = "whole numbers" if at_least is None else f"{at_least}, {at_least + 1}, ..."
    return declared(default, allowed, check, help, int)


def flag(default: bool, help: str = "") -> Any:
    """Declare a switch."""

    def check(name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be true or false, not {shown(value)}.")
        return value

    return declared(default, "true, false", check, help)


def choice(default: str | None, options: Sequence[str], help: str = "") -> Any:
    """Declare one of several names; ``None`` where it depends on something else."""

    def check(name: str, value: Any) -> str:
        require_known(name, value, options)
        return str(value)

    return declared(default, ", ".join(options), check, help, str)


def patterns(default: tuple[str, ...] | None, help: str = "") -> Any:
    """Declare glob patterns; ``None`` where a rule has a choice of its own."""

    def check(name: str, value: Any) -> tuple[str, ...]:
        if not _is_sequence(value) or not all(isinstance(item, str) for item in value):
            raise TypeError(f"{name} must be a sequence of globs, not {shown(value)}.")
        return tuple(value)

    return declared(default, "globs", check, help, str)


def per_task() -> Any:
    """Declare an optional finite number for each task, in the order of the tasks."""
    return declared(None, "one number per task", _numbers)


def per_task_by_tensor() -> Any:
    """Declare an optional mapping of globs of tensor names to a finite number for each task."""

    def check(name: str, value: Any) -> FrozenDict[tuple[float, ...]]:
        if not isinstance(value, Mapping):
            raise TypeError(f"{name} must map globs of tensor names to numbers, not be a {type(value).__name__}.")
        return FrozenDict((str(key), _numbers(f"{name}[{shown(key)}]", items)) for key, items in value.items())

    return declared(None, "one number per task for each glob", check)


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    if not _is_sequence(value):
        raise TypeError(f"{name} must be a sequence of numbers, not {shown(value)}.")
    return tuple(require_finite(name, item) for item in value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_parameters(holder: Any) -> None:
    """Check every declared field of a frozen dataclass and store it as it is to be held."""
    for field in dataclasses.fields(holder):
        if check := field.metadata.get("check"):
            object.__setattr__(holder, field.name, check(field.name, getattr(holder, field.name)))


def from_values(cls: Callable[..., Made], kind: str, values: Mapping[str, Any]) -> Made:
    """Make a dataclass from its fields' values; `UnknownNameError`, which calls a field ``kind``, for what is none."""
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in values:
        require_known(kind, name, known)
    return cls(**values)


def describe_field(field: dataclasses.Field[Any]) -> str:
    """Return a declared field's name, default and range, such as ``density = 0.2 in (0, 1]``."""
    default = f'"{field.default}"' if isinstance(field.default, str) else field.default
    return f"{field.name} = {default} in {field.metadata['range']}"


def explain_field(field: dataclasses.Field[Any]) -> str:
    """Return a declared field's meaning, range and default, such as ``the part to drop, in [0, 1] (default: 0.5)``."""
    allowed = field.metadata["range"]
    default = "" if field.default in (None, (), MISSING) else f" (default: {field.default})"
    return f"{field.metadata['help']}{', in' if allowed[0] in '([' else ':'} {allowed}{default}"


def unusual(holder: Any) -> dict[str, Any]:
    """Return the fields of a dataclass whose values are not their defaults."""
    return {
        field.name: value
        for field in dataclasses.fields(holder)
        if (value := getattr(holder, field.name)) != field.default
    }


def documented(cls: type[Made]) -> type[Made]:
    """Write what the declared fields mean into the dataclass's docstring, between what it does and what it raises."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    before, heading, after = inspect.cleandoc(cls.__doc__ or "").partition("\n\nRaises:\n")
    arguments = "".join(f"\n    {field.name}: {explain_field(field)}." for field in fields)
    cls.__doc__ = f"{before}\n\nArgs:{arguments}{heading}{after}"
    return cls
