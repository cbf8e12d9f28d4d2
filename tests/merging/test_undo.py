# ruff: noqa: PT012  (what is raised in the block is what is tested)
import gc
import signal
import threading

import pytest
import torch
from _helpers.interrupts import Thrown
from torch import nn

from lwptv_lightning.merging import Undo, keep_modes, swap_


def failing(times, done):
    """A step that fails some times before it works."""
    left = [times]

    def step():
        if left[0]:
            left[0] -= 1
            raise Thrown
        done.append("worked")

    return step


@pytest.fixture
def handled():
    """The signals that arrive at a handler of Python's."""
    found = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: found.append(number))
    yield found
    signal.signal(signal.SIGUSR1, before)


def test_steps_are_taken_back_the_last_first():
    done = []
    with pytest.raises(Thrown), Undo() as undo:
        undo.add(done.append, 1)
        undo.add(done.append, 2)
        raise Thrown
    assert done == [2, 1]


def test_what_is_to_stay_stays_even_if_something_is_raised_after():
    done = []
    with pytest.raises(Thrown), Undo() as undo:
        undo.add(done.append, 1)
        undo.keep()
        raise Thrown
    assert done == []


def test_what_is_taken_back_in_the_block_is_so_once():
    done = []
    with Undo() as undo:
        undo.add(done.append, 1)
        undo.take_back()
        assert done == [1]
    assert done == [1]


def test_attributes_are_remembered():
    holder = nn.Module()
    holder.name = "old"
    with Undo() as undo:
        undo.remember(holder, "name")
        holder.name = "new"
    assert holder.name == "old"


@pytest.mark.parametrize("times", [1, 2])
def test_a_step_that_is_interrupted_is_tried_again_and_the_interrupt_goes_on(times):
    done = []
    with pytest.raises(Thrown), Undo() as undo:
        undo.add(done.append, "first")
        undo.add(failing(times, done))
    assert done == ["worked", "first"]


def test_a_step_that_fails_for_good_keeps_no_other_from_its_turn():
    done = []
    with pytest.raises(Thrown) as caught, Undo() as undo:
        undo.add(done.append, "first")
        undo.add(failing(99, done))
        raise ValueError("what was raised first")
    assert done == ["first"]
    assert isinstance(caught.value.__context__, ValueError)


def test_several_steps_become_one():
    done = []
    with Undo() as undo:
        undo.add(done.append, 1)
        undo.add(done.append, 2)
        undo.add(done.append, 3)
        undo.settle(2, done.append, "both")
    assert done == ["both", 1]


def test_signals_wait_until_the_block_has_ended(handled):
    with Undo() as undo:
        undo.add(lambda: signal.raise_signal(signal.SIGUSR1))
        undo.hold()
        signal.raise_signal(signal.SIGUSR1)
        assert handled == []
    assert handled == [signal.SIGUSR1] * 2


def test_signals_wait_for_the_outermost_block(handled):
    with Undo() as outer:
        outer.hold()
        with Undo() as inner:
            inner.hold()
            signal.raise_signal(signal.SIGUSR1)
        assert handled == []
    assert handled == [signal.SIGUSR1]


def test_without_a_hold_signals_arrive_at_once(handled):
    with Undo():
        signal.raise_signal(signal.SIGUSR1)
        assert handled == [signal.SIGUSR1]


@pytest.mark.usefixtures("handlers")
def test_an_interrupt_is_raised_when_all_is_taken_back():
    done = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Undo() as undo:
        undo.hold()
        undo.add(done.append, "back")
        signal.raise_signal(signal.SIGINT)
        done.append("went on")
    assert done == ["went on", "back"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("handlers")
def test_a_handler_that_was_left_behind_handles(handled):
    undo = Undo()
    undo.hold()  # and its block never ends
    del undo
    gc.collect()
    signal.raise_signal(signal.SIGUSR1)
    assert handled == [signal.SIGUSR1]


def test_another_thread_holds_no_signals(handled):
    found = []

    def work():
        with Undo() as undo:
            undo.hold()
            found.append(signal.getsignal(signal.SIGUSR1))

    before = signal.getsignal(signal.SIGUSR1)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_modes_of_all_parts_come_back():
    module = nn.Sequential(nn.Linear(1, 1).eval(), nn.Dropout())
    with Undo() as undo:
        keep_modes(module, undo)
        module.eval()
    assert [part.training for part in module.modules()] == [True, False, True]


@pytest.mark.parametrize("kept", [True, False])
def test_values_of_two_tensors_are_swapped_or_not(kept):
    one, other = torch.tensor([-0.0, 1.0]), torch.tensor([2.0, 1e-42])
    with Undo() as undo:
        swap_(one, other, undo)
        assert one.tolist() == [2.0, torch.tensor(1e-42).item()]
        if kept:
            undo.keep()
    assert (one[0].item() == 2.0) == kept
    assert (str(other[0].item()) == "-0.0") == kept
