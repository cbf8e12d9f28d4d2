import pytest
import torch

from lwptv_lightning import TaskVectors
from lwptv_lightning.task_vectors import HeldStack, part, whole


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
