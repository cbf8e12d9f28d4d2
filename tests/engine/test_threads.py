"""Threads give results in order, in the caller's mode, and leave torch as it was however they end."""

import gc
import threading
import time

import pytest
import torch

from lwptv_lightning.engine import Threads


@pytest.fixture(autouse=True)
def _three(use_threads):
    use_threads(3)


@pytest.fixture(autouse=True)
def _nothing_is_left(_three):
    yield
    assert torch.get_num_threads() == 3
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("lwptv")] == []


def calls_of(functions):
    with Threads(2) as threads:
        yield from threads.in_order(functions)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_the_order_of_the_calls(count):
    def call(number):
        time.sleep(0.01 if number % 3 == 0 else 0)  # so that later ones are ready before
        return number

    with Threads(count) as threads:
        assert list(threads.in_order(lambda number=number: call(number) for number in range(20))) == list(range(20))
        assert list(threads.in_order([])) == []
        assert threads.submit(divmod, 7, 2).result() == (3, 1)


def test_torch_works_with_one_thread_inside_and_with_all_outside():
    both, inside = threading.Barrier(2), []

    def look():
        both.wait(10)  # in each of both threads
        inside.append((threading.current_thread().name[:5], torch.get_num_threads()))

    with Threads(2) as threads:
        assert torch.get_num_threads() == 1
        list(threads.in_order([look] * 6))
    assert inside == [("lwptv", 1)] * 6
    with Threads(1) as threads:
        assert list(threads.in_order([threading.current_thread, torch.get_num_threads])) == [
            threading.current_thread(),
            3,
        ]


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_call_that_fails_is_told_and_later_ones_are_not_begun(count):
    begun = []

    def call(number):
        begun.append(number)
        if number == 2:
            raise ValueError("the third")
        if number == 3:
            raise KeyError("the fourth, which may be quicker")
        return number

    got = []

    def use():
        with Threads(count) as threads:
            for value in threads.in_order((lambda number=number: call(number)) for number in range(1000)):
                got.append(value)

    with pytest.raises(ValueError, match="the third"):
        use()
    assert got == [0, 1]
    assert len(begun) < 20


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_call_raises_its_result_raises(count):
    with Threads(count) as threads:
        failed = threads.submit(int, "x")
        with pytest.raises(ValueError, match="invalid literal"):
            failed.result()


def test_an_error_where_calls_are_made_reaches_the_caller():
    def functions():
        yield int
        raise OSError("disk failed")

    with pytest.raises(OSError, match="disk failed"):
        list(calls_of(functions()))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_calls_are_in_the_mode_of_the_caller(count, mode):
    def modes():
        return torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    with mode():
        expected = modes()
        with Threads(count) as threads:
            assert list(threads.in_order([modes] * 4)) == [expected] * 4
            assert threads.submit(modes).result() == expected


def test_a_generator_that_is_given_up_ends_its_threads():
    results = calls_of(int for _ in range(100))
    assert next(results) == 0
    assert torch.get_num_threads() == 1
    results.close()
    assert torch.get_num_threads() == 3
    results = calls_of(int for _ in range(100))
    next(results)
    del results
    gc.collect()


def test_ctrl_c_where_results_are_used_ends_them():
    begun = []

    def use():
        with Threads(2) as threads:
            for _ in threads.in_order((lambda: begun.append(1)) for _ in range(100)):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert len(begun) < 10


def test_ctrl_c_inside_a_call_is_raised_in_its_place():
    def call():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(calls_of([int, call, int]))


def test_threads_that_cannot_begin_leave_none_behind(monkeypatch):
    start, started = threading.Thread.start, []

    def refused(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        list(calls_of([int]))
    assert len(started) == 1
    started[0].join(10)
    assert not started[0].is_alive()
