import pytest
import torch

from lwptv_lightning import TaskVectors
from lwptv_lightning.engine.blocks import read_blocks, spans
from lwptv_lightning.functional import sum_tasks
from lwptv_lightning.task_vectors import HeldStack, part, whole


@pytest.mark.parametrize("elements", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("length", [1, 5, 64, 100])
def test_spans_cover_a_tensor_once(elements, length):
    parts = list(spans(elements, element_bytes=12, block_bytes=length * 12))
    assert [index for part in parts for index in range(elements)[part]] == list(range(elements))
    assert parts[0].start == 0
    assert all(part.start % min(length, 64) == 0 for part in parts)
    assert all(part.stop - part.start <= length for part in parts)


def test_a_block_holds_the_same_bytes_for_any_number_of_tasks():
    lengths = {tasks: next(spans(1 << 30, 4 * tasks, 1 << 21)).stop for tasks in (1, 4, 8, 16)}
    assert len({tasks * length for tasks, length in lengths.items()}) == 1


@pytest.mark.parametrize("tasks", [1, 2, 5, 8, 16, 33])
def test_the_sum_over_tasks_does_not_depend_on_the_number_of_elements(tasks):
    tau = torch.randn(tasks, 100, generator=torch.Generator().manual_seed(0))
    total = sum_tasks(tau)
    assert torch.equal(torch.cat([sum_tasks(part.contiguous()) for part in tau.split([1, 7, 92], dim=1)]), total)
    torch.testing.assert_close(total, tau.double().sum(0).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("elements", [slice(0, 4), slice(7, 15), slice(None), slice(None, None, 4)])
def test_parts_of_stored_and_held_task_vectors_are_those_of_the_whole(dtype, elements, base_state, task_states):
    base, *tasks = [
        {name: tensor.to(dtype) for name, tensor in state.items()} for state in (base_state, *task_states.values())
    ]
    vectors = TaskVectors.open(base, dict(zip(task_states, tasks, strict=True)))
    expected = torch.stack([state["fc.weight"].float() - base["fc.weight"].float() for state in tasks])
    like = torch.empty(0)
    for stack in (vectors.open_stack("fc.weight"), HeldStack(expected, base["fc.weight"])):
        assert stack.shape == (3, 5, 3)
        assert torch.equal(part(stack, elements, like), expected.flatten(1)[:, elements])
        assert torch.equal(whole(stack.only(1), like), expected[1:2])
        assert torch.equal(whole(stack.where([True, False, True]), like)[1], torch.zeros(5, 3))
        assert torch.equal(whole(stack.where([True, False, True]), like)[[0, 2]], expected[[0, 2]])
        assert torch.equal(stack.sources(elements)[0], base["fc.weight"].flatten()[elements])
        assert whole(stack, torch.empty(0, dtype=torch.float64)).dtype == torch.float64
        part(stack, elements, like).fill_(9)
        assert torch.equal(whole(stack, like), expected)


def test_blocks_come_in_order_and_with_their_place(vectors):
    stacks = [(name, vectors.open_stack(name)) for name in ("fc.weight", "gain")]
    found = list(read_blocks(stacks, torch.empty(0), block_bytes=4 * 3 * 4))
    assert [block.name for block in found] == ["fc.weight"] * 4 + ["gain"]
    for name in ("fc.weight", "gain"):
        blocks = [block for block in found if block.name == name]
        assert [block.start for block in blocks] == list(range(0, vectors.headers[name].numel, 4))
        assert torch.equal(torch.cat([block.tau for block in blocks], dim=1), vectors.stack(name).reshape(3, -1))
        assert torch.equal(torch.cat([block.base for block in blocks]), vectors.base(name).flatten())
