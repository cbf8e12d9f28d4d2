import contextlib

import pytest
import torch

from lwptv_lightning.engine import transfer
from lwptv_lightning.engine.transfer import PinnedTransfer

TENSORS = [
    torch.arange(5, dtype=torch.bfloat16),
    torch.arange(12.0).view(3, 4).T,
    torch.zeros(0),
    torch.tensor(7.0, dtype=torch.float64),
    torch.arange(3, dtype=torch.float16),
]


class Moment:
    """Stands for a CUDA event or stream on a machine without a device."""

    def __init__(self, device=None):
        self.waits = 0

    def record(self, stream):
        pass

    def synchronize(self):
        self.waits += 1

    def wait_event(self, event):
        pass


@pytest.fixture
def on_the_cpu(monkeypatch):
    buffers = []

    def plain(size):
        buffers.append(torch.empty(size, dtype=torch.uint8))
        return buffers[-1]

    monkeypatch.setattr(torch.cuda, "Stream", Moment)
    monkeypatch.setattr(torch.cuda, "Event", Moment)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", Moment)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, non_blocking: tensor.clone())
    monkeypatch.setattr(transfer, "_pinned", plain)
    return buffers


def test_tensors_of_any_dtype_and_shape_arrive_as_they_were_sent(on_the_cpu):
    for sent, arrived in zip(TENSORS, PinnedTransfer(torch.empty(0)).send(TENSORS)(), strict=True):
        assert arrived.dtype == sent.dtype
        assert torch.equal(arrived, sent)


def test_two_buffers_are_filled_in_turn_and_only_once_their_content_has_left(on_the_cpu):
    sender = PinnedTransfer(torch.empty(0))
    arrivals, events = [], []
    for number in range(5):
        before = list(sender._sent)
        arrivals.append(sender.send([torch.full((4,), float(number))]))
        events.append(sender._sent[number % 2])
        assert before[number % 2] is None or before[number % 2].waits == 1
    assert [arrive()[0][0].item() for arrive in arrivals] == [0, 1, 2, 3, 4]
    assert len(on_the_cpu) == 2
    assert [event.waits for event in events] == [1, 1, 1, 0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_is_computed_from_arrivals_sees_the_whole_content():
    sender = PinnedTransfer(torch.empty(0, device="cuda"))
    blocks = [torch.randn(1 << 22) for _ in range(6)]
    arrivals = [sender.send([blocks[0]])]
    for number in range(6):
        if number + 1 < 6:
            arrivals.append(sender.send([blocks[number + 1]]))
        assert torch.equal((arrivals[number]()[0] * 2).cpu(), blocks[number] * 2)
