"""The T task vectors of one tensor, to be read whole or in parts of its flattened elements."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from lwptv_lightning.checkpoints import Checkpoint, CheckpointError, write_difference


class StoredStack:
    """Task vectors computed from stored weights, as far as they are asked for; one without an expert is zero."""

    def __init__(self, name: str, base: Checkpoint, experts: Sequence[Checkpoint | None]) -> None:
        self.shape = (len(experts), *base.headers[name].shape)
        self._name = name
        self._checkpoint = base
        self._experts = experts

    @cached_property
    def base(self) -> Tensor:
        """The base's tensor, flattened, in its own dtype; not to be written to."""
        return self._checkpoint.read(self._name).reshape(-1)

    @cached_property
    def _stored(self) -> list[tuple[Tensor, bool]]:
        """Each read expert's tensor, and whether it is a difference from the base already."""
        read = (expert.read_for_difference(self._name) for expert in self._experts if expert is not None)
        return [(tensor.reshape(-1), is_difference) for tensor, is_difference in read]

    def read(self) -> None:
        """Read all that the task vectors are made of, unless that was done; what is mapped stays in its file."""
        _ = self.base, self._stored

    def sources(self, elements: slice) -> list[Tensor]:
        """Return what some elements of the flattened task vectors are made of: the base's elements, then others."""
        return [self.base[elements], *(tensor[elements] for tensor, _ in self._stored)]

    def operands(self, elements: slice) -> tuple[Tensor, list[tuple[Tensor, bool] | None]]:
        """Return what some elements are made of: the base's elements, and what each task's row is.

        Returns:
            The base's elements, ``(n,)``; and for each task its elements, and whether they are a difference from the
            base already; None where the row is zero. All are in their own dtypes, and not to be written to.
        """
        stored = iter(self._stored)
        experts = (None if expert is None else next(stored) for expert in self._experts)
        rows = [None if found is None else (found[0][elements], found[1]) for found in experts]
        return self.base[elements], rows

    def tau(self, base: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Make elements of the task vectors, ``(T, n)``, freshly, in the dtype and on the device of ``base``.

        Args:
            base: The first of `sources`, in the dtype and on the device where to compute.
            others: The rest of `sources`, or copies of them.
        """
        given = zip(others, self._stored, strict=True)
        tau = torch.empty((len(self._experts), *base.shape), device=base.device, dtype=base.dtype)
        for row, expert in zip(tau, self._experts, strict=True):
            if expert is None:
                row.zero_()
                continue
            values, (_, is_difference) = next(given)
            write_difference(values, is_difference, base, row)
        # NaN and infinity survive a sum, so that one number tells; overflow of a finite sum is told apart by the rest.
        if not math.isfinite(tau.sum().item()):
            self._raise_unless_finite()
        return tau

    def where(self, kept: Iterable[bool]) -> StoredStack:
        """Return the same task vectors with those of some tasks zero, which are not read."""
        experts = [expert if keep else None for expert, keep in zip(self._experts, kept, strict=True)]
        return StoredStack(self._name, self._checkpoint, experts)

    def only(self, task: int) -> StoredStack:
        """Return the task vector of one task, with T = 1."""
        one = StoredStack(self._name, self._checkpoint, [self._experts[task]])
        if "_stored" in self.__dict__:  # what was read is not read again
            given = iter(self._stored)
            stored = [None if expert is None else next(given) for expert in self._experts]
            one.__dict__ |= {"base": self.base, "_stored": [found for found in [stored[task]] if found is not None]}
        return one

    def _raise_unless_finite(self) -> None:
        for checkpoint in (self._checkpoint, *(expert for expert in self._experts if expert is not None)):
            values = checkpoint.read(self._name).double()
            if broken := int((~torch.isfinite(values)).sum()):
                mask = " A mask, which is no weight, goes into exclude=(...), or is known from model=..."
                raise CheckpointError(
                    f"{checkpoint.source}: {broken} NaN or infinite values in {self._name!r}; expected finite weights."
                    + (mask if checkpoint is self._checkpoint and not values.isnan().any() else "")
                )


class HeldStack:
    """Task vectors that are in memory, ``(T, *shape)``, beside the base's tensor."""

    def __init__(self, tau: Tensor, base: Tensor) -> None:
        self.shape = tuple(tau.shape)
        self.base = base.reshape(-1)
        self._rows = tau.reshape(len(tau), math.prod(tau.shape[1:]))

    def read(self) -> None:  # noqa: D102 (as a StoredStack does)
        pass

    def sources(self, elements: slice) -> list[Tensor]:  # noqa: D102 (as a StoredStack does)
        return [self.base[elements], self._rows[:, elements]]

    def operands(self, elements: slice) -> tuple[Tensor, list[tuple[Tensor, bool] | None]]:  # noqa: D102
        return self.base[elements], [(row[elements], True) for row in self._rows]

    def tau(self, base: Tensor, others: Sequence[Tensor]) -> Tensor:  # noqa: D102 (as a StoredStack does)
        return others[0].to(base.device, base.dtype).clone(memory_format=torch.contiguous_format)

    def where(self, kept: Iterable[bool]) -> HeldStack:  # noqa: D102 (as a StoredStack does)
        keep = torch.tensor(list(kept), device=self._rows.device)
        return HeldStack(self._rows.where(keep[:, None], 0).reshape(self.shape), self.base)

    def only(self, task: int) -> HeldStack:  # noqa: D102 (as a StoredStack does)
        return HeldStack(self._rows[task].reshape(1, *self.shape[1:]), self.base)


class ChangedStack:
    """Task vectors each of which a function changes, as a whole: when it is first asked for, and once.

    Args:
        stack: The task vectors before.
        change: Returns a task vector, changed, from that and the base's tensor, both ``(*shape)``; it may be called in
            several threads at a time. One of zeros must stay what it is.
        like: A tensor of the dtype and in the place in which it is computed.
    """

    def __init__(self, stack: Stack, change: Callable[[Tensor, Tensor], Tensor], like: Tensor) -> None:
        self.shape: tuple[int, ...] = stack.shape
        self._stack, self._change, self._like = stack, change, like
        self._made: list[Tensor | None] = [None] * len(self)
        self._locks = [threading.Lock() for _ in self._made]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def base(self) -> Tensor:  # noqa: D102 (as a StoredStack does)
        return self._stack.base

    def read(self) -> None:  # noqa: D102 (as a StoredStack does)
        self._stack.read()

    def _rows(self) -> list[Tensor]:
        """Return each task vector, flattened. Threads that want them at a time make one each, then wait for others."""
        for waits in (False, True):
            for task, lock in enumerate(self._locks):
                if self._made[task] is None and lock.acquire(blocking=waits):
                    try:
                        if self._made[task] is None:
                            self._made[task] = self._row(task)
                    finally:
                        lock.release()
        return [row for row in self._made if row is not None]

    def _row(self, task: int) -> Tensor:
        before = whole(self._stack.only(task), self._like)[0]
        return self._change(before, self.base.reshape(self.shape[1:])).reshape(-1)

    def sources(self, elements: slice) -> list[Tensor]:  # noqa: D102 (as a StoredStack does)
        return [self.base[elements], *(row[elements] for row in self._rows())]

    def operands(self, elements: slice) -> tuple[Tensor, list[tuple[Tensor, bool] | None]]:  # noqa: D102
        return self.base[elements], [(row[elements], True) for row in self._rows()]

    def tau(self, base: Tensor, others: Sequence[Tensor]) -> Tensor:  # noqa: D102 (as a StoredStack does)
        return torch.stack([row.to(base.device, base.dtype) for row in others])

    def where(self, kept: Iterable[bool]) -> ChangedStack:
        """Return the same task vectors with those of some tasks zero, which are neither read nor changed."""
        return ChangedStack(self._stack.where(kept), self._change, self._like)

    def only(self, task: int) -> ChangedStack:  # noqa: D102 (as a StoredStack does)
        return ChangedStack(self._stack.only(task), self._change, self._like)


Stack: TypeAlias = StoredStack | HeldStack | ChangedStack
"""The task vectors of one tensor, wherever they come from; nothing is read before it is asked for."""


def part(stack: Stack, elements: slice, like: Tensor) -> Tensor:
    """Return some elements of the flattened task vectors, ``(T, n)``, fresh, in the dtype and place of ``like``."""
    base, *others = stack.sources(elements)
    return stack.tau(base.to(like), others)


def whole(stack: Stack, like: Tensor) -> Tensor:
    """Return all of a stack, ``(T, *shape)``, fresh, in the dtype and place of ``like``."""
    return part(stack, slice(None), like).reshape(stack.shape)
