"""A mapping that stays as it is, so that what holds it can be hashed."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

Value = TypeVar("Value")


class FrozenDict(dict[str, Value]):
    """A dict that cannot be changed; two of them are equal if their order is too.

    Example:
        >>> hash(FrozenDict(a=1)) == hash(FrozenDict(a=1)), FrozenDict(a=1) == {"a": 1}
        (True, True)
    """

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
