"""State dicts, checkpoints and readers that count or spoil what is read of them."""

import warnings
from collections import Counter

import torch

from lwptv_lightning import TaskVectors
from lwptv_lightning.checkpoints import Checkpoint, open_checkpoint

SHAPES = {"stem.weight": (3, 4), "stem.bias": (3,), "fc.weight": (5, 3), "head.weight": (2, 5), "gain": ()}


def noise(state, seed, scale=0.05):
    """Add noise to the floating tensors of a state dict."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + scale * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


def random_state(seed, size=1.0, shapes=SHAPES):
    """Random tensors of given shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def plus(base, change):
    """Add two state dicts."""
    return {name: base[name] + change[name] for name in base}


def open_vectors(base, tasks):
    """Open task vectors that may be zero."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "task .* equals the base")
        return TaskVectors.open(base, tasks)


class WatchedReader:
    """Reads from a checkpoint, counts reads, and may fail or spoil what it reads.

    Attributes:
        reads: Name to number of reads.
        fail: The tensor at which reading fails.
        spoil: The tensor whose values come as NaN.
    """

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint
        self.reads = Counter()
        self.spoil, self.fail = None, None

    def read(self, name):
        self.reads[name] += 1
        if name == self.fail:
            raise OSError(f"disk failed at {name}")
        tensor = self.checkpoint.read(name)
        return torch.full_like(tensor, torch.nan) if name == self.spoil else tensor


def watched(source) -> tuple[Checkpoint, WatchedReader]:
    """Open a checkpoint, and return it with what its tensors are read by."""
    checkpoint = open_checkpoint(source)
    reader = WatchedReader(checkpoint)
    return checkpoint.with_tensors(checkpoint.headers, reader), reader


def as_bytes(tensor):
    """Return a tensor's bytes, which tell -0.0 from 0.0 and NaN from NaN."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same_bits(actual, expected):
    """Check that two models have the same tensors, to the bit."""
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].dtype == expected[name].dtype, name
        assert actual[name].shape == expected[name].shape, name
        assert as_bytes(actual[name]) == as_bytes(expected[name]), name


def assert_close(actual, expected, tolerance=1e-5):
    """Check that two models have the same tensors but for rounding."""
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=tolerance, rtol=tolerance, msg=name)
