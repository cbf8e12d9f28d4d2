"""What is computed of tensors once, however many rules, passes and candidates ask for it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

Value = TypeVar("Value")
Several = TypeVar("Several", bound=tuple[Tensor, ...])
"""A named tuple of tensors."""

_Key: TypeAlias = tuple[Callable[[Tensor], Any], Hashable]

_PATIENCE = 8
"""How many times as many questions as there are values a value waits to be asked for again."""
_OVERHEAD = 1 << 10
"""Bytes of a value besides its tensors, and of its key."""


class Once(Protocol):
    """Returns what a pure function of a module makes of a tensor, perhaps without computing it again.

    What it returns is not to be written to. It is the same to the bit, whether it was computed now or before.
    """

    def __call__(self, function: Callable[[Tensor], Value], tensor: Tensor, /) -> Value:  # noqa: D102
        ...


def anew(function: Callable[[Tensor], Value], tensor: Tensor, /) -> Value:
    """Compute it, and remember nothing.

    Raises:
        TypeError: The function is none of a module, by which its values could be known again.
    """
    _require_of_module(function)
    # Neither how the values lie in memory nor the caller's mode may matter to a value that others get.
    if torch.is_grad_enabled() and tensor.requires_grad:
        return function(tensor.contiguous())
    with torch.inference_mode(False), torch.no_grad():
        return function(tensor.contiguous())


def of_each(once: Once, function: Callable[[Tensor], Several], stack: Tensor) -> list[Several]:
    """Return what a function that takes stacks makes of each tensor of a stack.

    On the CPU this is computed of one after the other, so that no bit depends on what stands together; on an
    accelerator, where starting an operation takes longer than a small one, at once.
    """
    if stack.device.type == "cpu":
        return [once(function, each) for each in stack]
    return once.at_once(function, [*stack]) if isinstance(once, Memo) else unstacked(anew(function, stack))


def unstacked(stacks: Several) -> list[Several]:
    """Return named tuples of single tensors, in memory of their own, for one of stacks.

    Example:
        >>> from lwptv_lightning.functional import decompose
        >>> [each.values.shape for each in unstacked(decompose(torch.ones(3, 2, 4)))]
        [torch.Size([2]), torch.Size([2]), torch.Size([2])]
    """
    kind = type(stacks)
    return [kind(*(part.clone() for part in parts)) for parts in zip(*stacks, strict=True)]


class Memo:
    """Remembers what pure functions made of tensors: an `Once` for several merges, in any number of threads.

    A value is known by the function and by what the tensor holds, its dtype, shape and device: whatever view, mask or
    modifier made a tensor, equal ones have one value, and others never do. Two threads that ask for the same compute it
    once. With another number of threads within torch it is another value, since its last bits may be others.

    Values together take at most ``limit`` bytes. The one that was asked for least recently makes room for a new one,
    unless all were asked for not long ago: then the new one is not kept. The tensors of a model that is too large, for
    which each merge asks in turn, would else displace one another before they are asked for again.

    A copy, also one in another process, has the limit and remembers nothing.

    Args:
        limit: Bytes of all values together, at least 0.

    Example:
        >>> from lwptv_lightning.functional import decompose
        >>> memo = Memo(1 << 20)
        >>> first, second = (memo(decompose, torch.eye(2)) for _ in range(2))
        >>> first is second, memo.held > 0
        (True, True)
    """

    def __init__(self, limit: int = 1 << 62) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._values: OrderedDict[_Key, _Known] = OrderedDict()
        self._begun: dict[_Key, Future[Any]] = {}
        self._asked = self._held = 0
        self._spared = 0.0

    def __reduce__(self) -> tuple[type[Memo], tuple[int]]:
        return Memo, (self._limit,)

    @property
    def limit(self) -> int:
        """Bytes that all values together may take."""
        return self._limit

    @property
    def held(self) -> int:
        """Bytes that all values together take."""
        return self._held

    @property
    def spared(self) -> float:
        """How many seconds of computing it has spared, those of all threads together."""
        return self._spared

    def __call__(self, function: Callable[[Tensor], Value], tensor: Tensor, /) -> Value:
        """Return what the function makes of the tensor; not to be written to.

        Raises:
            TypeError: The function is none of a module, by which its values could be known again.
        """
        if not self._limit or tensor.requires_grad:
            return anew(function, tensor)
        _require_of_module(function)
        key = (function, _content(tensor))
        with self._lock:
            self._asked += 1
            if (known := self._known(key)) is not None:
                self._spared += known.seconds
                return cast(Value, known.value)
            if (begun := self._begun.get(key)) is None:
                made: Future[Value] = Future()
                self._begun[key] = made
        if begun is not None:
            # What another thread failed to compute fails here in its own right.
            return cast(Value, begun.result()) if begun.exception() is None else anew(function, tensor)
        start = time.perf_counter()
        try:
            value = anew(function, tensor)
        except BaseException as error:
            with self._lock:
                del self._begun[key]
            made.set_exception(error)
            raise
        with self._lock:
            del self._begun[key]
            self._keep(key, value, time.perf_counter() - start)
        made.set_result(value)
        return value

    def allow(self, limit: int) -> None:
        """Set the limit, and forget what exceeds it."""
        with self._lock:
            self._limit = max(limit, 0)
            while self._held > self._limit:
                self._drop_oldest()

    def at_once(self, function: Callable[[Tensor], Several], tensors: Sequence[Tensor]) -> list[Several]:
        """Return what a function that takes stacks makes of each of some tensors of one shape.

        What is not remembered is computed as one stack, whose last bits may depend on what else is in it.
        """
        keys: list[_Key] = [(function, _content(tensor)) for tensor in tensors]
        of = dict(zip(reversed(keys), reversed(tensors), strict=True))
        with self._lock:
            self._asked += 1
            found = {key: known.value for key in of if (known := self._known(key)) is not None}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            start = time.perf_counter()
            made = anew(function, torch.stack([of[key] for key in missing]))
            seconds = (time.perf_counter() - start) / len(missing)
            with self._lock:
                for key, own in zip(missing, unstacked(made), strict=True):
                    found[key] = own
                    self._keep(key, own, seconds)
        return [found[key] for key in keys]

    def _known(self, key: _Key) -> _Known | None:
        known = self._values.get(key)
        if known is not None:
            known.asked = self._asked
            self._values.move_to_end(key)
        return known

    def _keep(self, key: _Key, value: Any, seconds: float) -> None:
        size = _OVERHEAD + _bytes_of(value)
        if size > self._limit or key in self._values:
            return
        while self._held + size > self._limit:
            oldest = next(iter(self._values.values()))
            if self._asked - oldest.asked <= _PATIENCE * len(self._values):
                return
            self._drop_oldest()
        self._values[key] = _Known(value, size, seconds, self._asked)
        self._held += size

    def _drop_oldest(self) -> None:
        self._held -= self._values.popitem(last=False)[1].size


@dataclass
class _Known:
    """A value, its bytes, the seconds it took, and which question last asked for it."""

    value: Any
    size: int
    seconds: float
    asked: int


def _require_of_module(function: Callable[..., Any]) -> None:
    name = getattr(function, "__qualname__", None)
    if name is None or "<" in name:
        raise TypeError(
            f"once takes a function of a module, by which its values are known again, not {name or function!r}."
        )


def _content(tensor: Tensor) -> Hashable:
    """Return what tells a tensor, and how it is computed with, from others."""
    from blake3 import blake3

    host: Any = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
    threads = torch.get_num_threads() if tensor.device.type == "cpu" else 0
    return tensor.dtype, tuple(tensor.shape), tensor.device, threads, blake3(host).digest()


def _bytes_of(value: Any) -> int:
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in _tensors_of(value)}
    return sum(storages.values())


def _tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors_of(each)
