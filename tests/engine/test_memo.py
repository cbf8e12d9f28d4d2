"""What is remembered is what would be computed, for equal tensors alone, within its bytes and whoever asks."""

import copy
import functools
import pickle
import threading
from typing import NamedTuple

import pytest
import torch

from lwptv_lightning.engine import Execution, Memo, anew, of_each
from lwptv_lightning.engine.memo import _OVERHEAD, _PATIENCE

CALLS = []


def doubled(tensor):
    CALLS.append(tensor)
    return 2 * tensor


def halves(tensor):
    CALLS.append(tensor)
    return [tensor / 2, (tensor / 2,)]


def unwilling(tensor):
    CALLS.append(tensor)
    raise ValueError("not this one")


@pytest.fixture(autouse=True)
def _nothing_called():
    CALLS.clear()


def tensor_of(number, size=256):
    return torch.full((size,), float(number))


SIZE = 4 * 256 + _OVERHEAD
"""Bytes of what is remembered of such a tensor."""


def test_anew_computes_each_time():
    for _ in range(2):
        assert anew(doubled, torch.ones(2)).tolist() == [2, 2]
    assert len(CALLS) == 2


def test_equal_tensors_have_one_value_wherever_they_lie():
    memo, values = Memo(), torch.arange(12.0).reshape(3, 4)
    within = torch.zeros(3, 4, 2)
    within[..., 1] = values
    found = [memo(doubled, same) for same in (values, values.clone(), values.mT.contiguous().mT, within[..., 1])]
    assert all(each is found[0] for each in found)
    assert torch.equal(found[0], 2 * values)
    assert len(CALLS) == 1


def test_other_functions_values_shapes_and_dtypes_are_others():
    memo = Memo()
    bits = torch.zeros(4, dtype=torch.int32)
    ones = torch.ones(4)
    others = [
        bits,
        bits.float(),
        bits.to(torch.int64),
        ones,
        ones.reshape(2, 2),
        ones.to(torch.bfloat16),
        -ones,
        ones[:0],
    ]
    assert [memo(doubled, each).dtype for each in others] == [each.dtype for each in others]
    assert [memo(doubled, each).shape for each in others] == [each.shape for each in others]
    assert len(CALLS) == len(others)
    memo(halves, ones)
    assert len(CALLS) == len(others) + 1


class Pair(NamedTuple):
    twice: torch.Tensor
    sums: torch.Tensor


def pairs(tensor):
    CALLS.append(tensor)
    return Pair(2 * tensor, tensor.sum(-1))


def test_of_several_tensors_what_is_not_known_is_computed_as_one_stack():
    memo, numbers = Memo(), [torch.full((2,), float(number)) for number in range(3)]
    first = memo(pairs, numbers[1])
    found = memo.at_once(pairs, [*numbers, numbers[0].clone()])
    assert [tuple(each.shape) for each in CALLS] == [(2,), (2, 2)]
    assert found[1] is first
    assert found[0] is found[3] is memo(pairs, numbers[0])
    assert [each.sums.item() for each in found] == [0, 2, 4, 0]
    assert found[2].twice.untyped_storage().nbytes() == 8  # not that of the whole stack
    assert memo.at_once(pairs, numbers) == found[:3]
    assert len(CALLS) == 2
    assert Memo(0).at_once(pairs, numbers)[2].sums == 4


@pytest.mark.parametrize("once", [anew, Memo()])
def test_on_the_cpu_each_tensor_of_a_stack_is_computed_alone_and_elsewhere_all_at_once(once):
    found = of_each(once, pairs, torch.arange(6.0).reshape(3, 2))
    assert [each.sums.item() for each in found] == [1, 5, 9]
    assert [tuple(each.shape) for each in CALLS] == [(2,)] * 3
    CALLS.clear()
    if once is anew:
        assert len(of_each(once, pairs, torch.ones(3, 2, device="meta"))) == 3
        assert [tuple(each.shape) for each in CALLS] == [(3, 2)]


def test_what_other_numbers_of_threads_within_torch_make_is_kept_apart(use_threads):
    memo = Memo()
    for threads in (1, 2, 1, 2):
        use_threads(threads)
        memo(doubled, torch.ones(2))
    assert len(CALLS) == 2


@pytest.mark.parametrize("once", [anew, Memo(), Memo(0)])
def test_functions_that_cannot_be_known_again_are_refused(once):
    for function in (lambda tensor: tensor, functools.partial(torch.add, 1)):
        with pytest.raises(TypeError, match="once takes a function of a module"):
            once(function, torch.ones(1))


def test_bytes_are_those_of_all_tensors_and_the_least_recent_make_room_in_time():
    memo = Memo(3 * SIZE)
    for number in range(3):
        memo(doubled, tensor_of(number))
    assert memo.held == memo.limit
    for _ in range(4 * _PATIENCE):
        memo(doubled, tensor_of(0)), memo(doubled, tensor_of(2))
    CALLS.clear()
    memo(doubled, tensor_of(3))  # takes the place of 1
    for number in (3, 2, 0):
        memo(doubled, tensor_of(number))
    assert [each[0].item() for each in CALLS] == [3]
    memo(doubled, tensor_of(1))
    assert len(CALLS) == 2
    assert memo.held == memo.limit
    memo.allow(2 * SIZE)
    assert memo.held == 2 * SIZE
    memo.allow(0)
    assert memo.held == 0
    memo(doubled, tensor_of(3))
    assert memo.held == 0
    other = Memo()
    other(halves, tensor_of(1))
    assert other.held == 2 * 4 * 256 + _OVERHEAD


def test_a_model_that_is_too_large_is_remembered_in_part_however_often_it_is_gone_through():
    memo = Memo(4 * SIZE)
    for _ in range(5):
        for number in range(10):
            memo(doubled, tensor_of(number))
    assert len(CALLS) == 10 + 4 * 6
    assert memo.spared > 0


def test_what_is_too_large_is_made_and_not_kept():
    memo = Memo(SIZE)
    assert memo(doubled, tensor_of(1, 1000))[0] == 2
    assert memo.held == 0


def test_threads_that_ask_for_the_same_compute_it_once():
    memo, together, found = Memo(), threading.Barrier(8), []

    def ask(number):
        together.wait()
        found.append([memo(doubled, tensor_of(each)) for each in range(20)])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len(CALLS) == 20
    assert all(each is known for own in found for each, known in zip(own, found[0], strict=True))


def test_what_fails_fails_for_each_who_asks_and_is_not_remembered():
    memo = Memo()
    for _ in range(2):
        with pytest.raises(ValueError, match="not this one"):
            memo(unwilling, torch.ones(2))
    assert len(CALLS) == 2
    assert memo.held == 0


def test_a_copy_remembers_nothing():
    memo = Memo(1000)
    memo(doubled, torch.ones(2))
    for other in (copy.deepcopy(memo), pickle.loads(pickle.dumps(memo))):
        assert (other.limit, other.held) == (1000, 0)
    execution = Execution(memo=memo)
    assert execution == Execution()
    assert "memo=" not in repr(execution)
    assert copy.deepcopy(execution) == execution


def test_a_value_computed_in_inference_mode_serves_outside_of_it():
    memo = Memo()
    with torch.inference_mode():
        value = memo(doubled, torch.ones(2))
    assert not value.is_inference()
    weight = torch.ones(2, requires_grad=True)
    (weight * memo(doubled, torch.ones(2))).sum().backward()
    assert weight.grad.tolist() == [2, 2]


@pytest.mark.parametrize("once", [anew, Memo()])
def test_what_has_a_gradient_keeps_it_and_is_not_remembered(once):
    for _ in range(2):
        weight = torch.ones(2, requires_grad=True)
        once(doubled, weight).sum().backward()
        assert weight.grad.tolist() == [2, 2]
    assert len(CALLS) == 2


def test_a_memo_is_one():
    with pytest.raises(TypeError, match="memo must be a Memo"):
        Execution(memo={})
