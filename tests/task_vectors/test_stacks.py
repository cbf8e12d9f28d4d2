import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lwptv_lightning import TaskVectors
from lwptv_lightning.task_vectors import ChangedStack, HeldStack, part, whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("elements", [slice(0, 4), slice(7, 15), slice(None), slice(None, None, 4)])
def test_parts_of_stored_and_held_task_vectors_are_those_of_the_whole(dtype, elements, base_state, task_states):
    base, *tasks = [
        {name: tensor.to(dtype) for name, tensor in state.items()} for state in (base_state, *task_states.values())
    ]
    vectors = TaskVectors.open(base, dict(zip(task_states, tasks, strict=True)))
    expected = torch.stack([state["fc.weight"].float() - base["fc.weight"].float() for state in tasks])
    like = torch.empty(0)
    stored, unchanged = vectors.open_stack("fc.weight"), lambda delta, base: delta
    for stack in (stored, HeldStack(expected, base["fc.weight"]), ChangedStack(stored, unchanged, like)):
        assert stack.shape == (3, 5, 3)
        assert torch.equal(part(stack, elements, like), expected.flatten(1)[:, elements])
        assert torch.equal(whole(stack.only(1), like), expected[1:2])
        assert torch.equal(whole(stack.where([True, False, True]), like)[1], torch.zeros(5, 3))
        assert torch.equal(whole(stack.where([True, False, True]), like)[[0, 2]], expected[[0, 2]])
        assert torch.equal(stack.sources(elements)[0], base["fc.weight"].flatten()[elements])
        assert whole(stack, torch.empty(0, dtype=torch.float64)).dtype == torch.float64
        part(stack, elements, like).fill_(9)
        assert torch.equal(whole(stack, like), expected)


def test_changes_are_made_once_each_by_the_thread_that_wants_one_first():
    tau, begun, calls = torch.randn(4, 5), threading.Barrier(4, timeout=20), []

    def change(delta, base):
        calls.append(threading.get_ident())
        begun.wait()  # all four are made at a time
        return delta + base

    stack = ChangedStack(HeldStack(tau, torch.ones(5)), change, torch.empty(0))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: part(stack, slice(1, 3), torch.empty(0)), range(4)))
    assert len(calls) == len(set(calls)) == 4
    assert all(torch.equal(each, tau[:, 1:3] + 1) for each in found)


def test_a_change_that_failed_fails_again_for_the_next():
    def change(delta, base):
        raise ValueError("no")

    stack = ChangedStack(HeldStack(torch.ones(1, 2), torch.ones(2)), change, torch.empty(0))
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            whole(stack, torch.empty(0))
