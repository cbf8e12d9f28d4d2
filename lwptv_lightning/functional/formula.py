"""Formulas: what a rule would compute, noted down in place of being computed.

Where a function of stacks is called with a `Formula` for its stack, it returns a formula that holds its name and
arguments. So the code of a rule, which is written once and for tensors, tells what a compiled kernel has to do.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


class Formula:
    """The result of an operation that was not computed, on a stack of float32 task vectors on the CPU.

    Attributes:
        operation: The function's or method's name; ``"tau"`` is the stack itself.
        arguments: What it was called with, formulas among them.
        tasks: How many rows it has; 0 where it is one number for each element, or fewer.
        is_flat: Whether the stack comes flattened, ``(T, n)``, so that it is known how many dimensions it has.

    Raises:
        TypeError: It is used in a way that no formula can note down, or was overwritten by a function in place.

    Example:
        >>> tau = Formula.of(2)
        >>> (tau / 2).operation, (tau / 2).arguments[1]
        ('div', 2)
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, operation: str, arguments: tuple[Any, ...] = (), tasks: int = 0, is_flat: bool = True) -> None:
        self.operation = operation
        self.arguments = arguments
        self.tasks = tasks
        self.is_flat = is_flat
        self._overwritten = False

    @classmethod
    def of(cls, tasks: int, is_flat: bool = True) -> Formula:
        """Return the stack of T task vectors."""
        return cls("tau", (), tasks, is_flat)

    def note(self, operation: str, *arguments: Any, tasks: int | None = None) -> Formula:
        """Return the result of an operation on this; one whose name ends in ``_`` overwrites it."""
        if self._overwritten:
            raise TypeError(f"a formula cannot tell what {operation} finds in a stack that was written to.")
        self._overwritten = operation.endswith("_")
        rows = self.tasks if tasks is None else tasks
        return Formula(operation.removesuffix("_"), (self, *arguments), rows, self.is_flat)

    def __len__(self) -> int:
        if not self.tasks:
            raise TypeError("a formula does not tell how many elements there are.")
        return self.tasks

    def __iter__(self) -> Any:
        raise TypeError("the rows of a formula cannot be told apart.")

    def dim(self) -> int:
        """Return 2 for a flattened stack and 1 for what is no stack."""
        if not self.is_flat:
            raise TypeError("a formula does not tell how many dimensions a tensor has.")
        return 2 if self.tasks else 1

    def clone(self) -> Formula:
        """Return the same for other use."""
        self.note("clone")
        return Formula(self.operation, self.arguments, self.tasks, self.is_flat)

    def abs(self) -> Formula:  # noqa: D102 (as a tensor does)
        return self.note("abs")

    def sign_(self) -> Formula:  # noqa: D102 (as a tensor does)
        return self.note("sign_")

    def sum(self) -> Formula:  # noqa: D102 (as a tensor does)
        return self.note("sum", tasks=0)

    def double(self) -> Formula:  # noqa: D102 (as a tensor does)
        return self.note("double")

    def __mul__(self, factor: Any) -> Formula:
        return self.note("mul", factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Formula:
        return self.note("div", divisor)

    def __imul__(self, factor: Any) -> Formula:
        return self.note("mul_", factor)

    def __itruediv__(self, divisor: Any) -> Formula:
        return self.note("div_", divisor)

    def __bool__(self) -> bool:
        raise TypeError("a formula does not tell its values.")

    def __eq__(self, other: object) -> bool:
        return bool(self)

    __hash__ = None  # type: ignore[assignment]


def noted(*, tasks: int | None = None) -> Callable[[Function], Function]:
    """Return a decorator of a function whose first argument is a stack, which makes it take a `Formula` as well.

    Args:
        tasks: How many rows the result has; by default as many as the stack.
    """

    def decorate(function: Function) -> Function:
        parameters = inspect.signature(function)
        first = next(iter(parameters.parameters))

        @functools.wraps(function)
        def either(*arguments: Any, **named: Any) -> Any:
            stack = arguments[0] if arguments else named.get(first)
            if not isinstance(stack, Formula):
                return function(*arguments, **named)
            given = parameters.bind(*arguments, **named)
            given.apply_defaults()
            return stack.note(function.__name__, *given.args[1:], tasks=tasks)

        return cast(Function, either)

    return decorate
