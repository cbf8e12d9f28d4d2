"""All or nothing: what was done is taken back, whatever is raised meanwhile, and signals wait until that is over."""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

_TRIES = 3


class Undo:
    """Takes back what was done in a ``with`` block, the last first, unless it came to `keep`.

    It does so after any exception: an error, an interrupt, a generator that is closed. A step that fails is tried
    again, and the others follow in any case. Meanwhile, and from `hold` on, signals wait whose handlers are Python's,
    such as that of Ctrl-C; they arrive when the block has ended.

    Example:
        >>> settings = {"a": 1}
        >>> with Undo() as undo:
        ...     undo.add(settings.update, {"a": 1})
        ...     settings["a"] = 2
        >>> settings
        {'a': 1}
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []
        self._handlers: dict[signal.Signals, Any] = {}
        self._holds = False
        self._waiting: list[signal.Signals] = []

    def __enter__(self) -> Undo:
        return self

    def add(self, step: Callable[..., object], *arguments: Any) -> None:
        """Add what takes back that which is done next. It must be right also where that was not done, or in part."""
        self._steps.append(partial(step, *arguments))

    def remember(self, holder: object, *names: str) -> None:
        """Let an object have the attributes again that it has now."""
        self.add(vars(holder).update, {name: vars(holder)[name] for name in names})

    def settle(self, count: int, step: Callable[..., object], *arguments: Any) -> None:
        """Put one step, which may hold less memory, in the place of the last ones."""
        self._steps[-count:] = [partial(step, *arguments)]

    def keep(self) -> None:
        """Let all that was done stay."""
        self._steps = []

    def hold(self) -> None:
        """Let signals wait until the block has ended; only the main thread has any."""
        if self._holds or threading.current_thread() is not threading.main_thread():
            return
        self._holds = True
        for number in signal.valid_signals():
            if callable(handler := signal.getsignal(number)):
                self._handlers[number] = handler
                signal.signal(number, partial(_wait_or_handle, weakref.ref(self), handler))

    def __exit__(self, *raised: object) -> None:
        try:
            self.take_back()
        finally:
            self._release()

    def take_back(self) -> None:
        """Take back what was done, inside the block: what is raised before it has begun is raised there too."""
        self.hold()
        error, tries = None, 0
        while self._steps:
            try:
                self._steps[-1]()
                self._steps.pop()
                tries = 0
            except BaseException as raised:  # a second interrupt too
                error, tries = raised, tries + 1
                if tries == _TRIES:
                    self._steps.pop()
                    tries = 0
        if error is not None:
            raise error

    def _release(self) -> None:
        if not self._holds:
            return
        self._holds = False
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for number in self._waiting:
            signal.raise_signal(number)


def _wait_or_handle(holder: weakref.ref[Undo], handler: Callable[..., object], number: int, frame: Any) -> None:
    """Let a signal wait; one whose block is over is handled, should the handler of before not have been put back."""
    undo = holder()
    if undo is not None and undo._holds:
        undo._waiting.append(signal.Signals(number))
    else:
        handler(number, frame)


def swap_(one: Tensor, other: Tensor, undo: Undo) -> None:
    """Swap the values of two tensors; only meanwhile copies of them are held."""
    first, second = one.clone(), other.clone()
    undo.add(one.copy_, first)
    undo.add(other.copy_, second)
    one.copy_(second)
    other.copy_(first)
    undo.settle(2, _swapped_back_, one, other)


def _swapped_back_(one: Tensor, other: Tensor) -> None:
    with Undo() as undo:
        swap_(one, other, undo)
        undo.keep()


def keep_modes(module: nn.Module, undo: Undo) -> None:
    """Let a module and its parts have the modes again that they have now, training or evaluation."""
    undo.add(_set_modes, [(part, part.training) for part in module.modules()])


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for part, training in modes:
        part.training = training  # not by `train()`, in which a module may do more than that
