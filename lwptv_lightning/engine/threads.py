"""Threads that each work on a block or a tensor of their own, so that no operation waits for all of them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Value = TypeVar("Value")

_AHEAD = 2
"""Results for each thread that may wait for those before them."""


class Threads:
    """A number of threads, in each of which torch itself works with one; with a number of 1, the caller's own.

    Where torch shares single operations among its threads, each of thousands of operations waits for the slowest one,
    and on a machine with other work for a thread that does not run at all. Here threads meet at the end. What is
    computed does not depend on their number: torch adds up in another order where it uses more threads. In the
    caller's thread, too, torch works with one until they have ended.

    Example:
        >>> with Threads(2) as threads:
        ...     list(threads.in_order(lambda number=number: number**2 for number in range(3)))
        [0, 1, 4]
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ThreadPoolExecutor | None = None
        self._usual = 1

    def __enter__(self) -> Threads:
        if self._count > 1:
            self._usual = torch.get_num_threads()
            self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="lwptv")
            try:
                torch.set_num_threads(1)
                self._begin(self._pool)
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            try:
                self._pool.shutdown(cancel_futures=True)
            finally:
                torch.set_num_threads(self._usual)

    def _begin(self, pool: ThreadPoolExecutor) -> None:
        """Start all threads, each with one thread of torch."""
        all_begun = threading.Barrier(self._count)

        def begin() -> None:
            torch.set_num_threads(1)
            all_begun.wait()  # a thread that is free would take another's turn

        try:
            for begun in [pool.submit(begin) for _ in range(self._count)]:
                begun.result()
        finally:
            all_begun.abort()

    def submit(self, function: Callable[..., Value], *arguments: Any) -> Future[Value]:
        """Begin a call; calls begin in the order in which they are given. One's own thread makes it at once.

        What a call raises, its result raises, in one's own thread too.
        """
        if self._pool is not None:
            return self._pool.submit(_in_mode_of_caller(function), *arguments)
        made: Future[Value] = Future()
        try:
            made.set_result(function(*arguments))
        except Exception as error:
            made.set_exception(error)
        return made

    def in_order(self, calls: Iterable[Callable[[], Value]]) -> Iterator[Value]:
        """Yield the results of calls in their order; a few are made ahead.

        Raises:
            Exception: That of the first call that failed; what follows is not begun.
        """
        if self._pool is None:
            yield from (call() for call in calls)
            return
        waiting: deque[Future[Value]] = deque()
        try:
            for call in calls:
                waiting.append(self.submit(call))
                if len(waiting) > _AHEAD * self._count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()


def _in_mode_of_caller(function: Callable[..., Value]) -> Callable[..., Value]:
    """Return a function that runs in the caller's mode of torch, which belongs to a thread."""
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def run(*arguments: Any) -> Value:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return function(*arguments)

    return run
