import pytest
import torch

from lwptv_lightning.engine.blocks import read_blocks, spans


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


def test_blocks_come_in_order_and_with_their_place(vectors):
    stacks = [(name, vectors.open_stack(name)) for name in ("fc.weight", "gain")]
    found = list(read_blocks(stacks, torch.empty(0), block_bytes=4 * 3 * 4))
    assert [block.name for block in found] == ["fc.weight"] * 4 + ["gain"]
    for name in ("fc.weight", "gain"):
        blocks = [block for block in found if block.name == name]
        assert [block.start for block in blocks] == list(range(0, vectors.headers[name].numel, 4))
        assert torch.equal(torch.cat([block.tau for block in blocks], dim=1), vectors.stack(name).reshape(3, -1))
        assert torch.equal(torch.cat([block.base for block in blocks]), vectors.base(name).flatten())
