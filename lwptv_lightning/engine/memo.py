"""What is computed of tensors once, however many rules, passes and candidates ask for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from torch import Tensor

Value = TypeVar("Value")


class Once(Protocol):
    """Returns what a pure function makes of a tensor, perhaps without computing it again; not to be written to."""

    def __call__(self, function: Callable[[Tensor], Value], tensor: Tensor, /) -> Value:  # noqa: D102
        ...


def anew(function: Callable[[Tensor], Value], tensor: Tensor, /) -> Value:
    """Compute it, and remember nothing."""
    return function(tensor)
