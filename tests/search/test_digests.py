from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lwptv_lightning.search.digests import architecture_of, digest_of


@dataclass
class One:
    value: object


@dataclass
class Other:
    value: object


DIFFERENT = [
    *(1, 1.0, True, None, "1", b"1", "", "\udcff", torch.float32),
    *([], {}, [1], [[1]], {"a": 1}, {"a": 2}, {1: "a"}, {"a": 1, "b": 2}, ["a", 1, "b", 2], {1, 2}, {1, 3}),
    *(["a", "b"], ["ab"], ("a", "b", "")),
    *(torch.ones(2), torch.ones(1, 2), torch.ones(2, dtype=torch.float64), torch.empty(0), torch.empty(0, 3)),
    *(torch.tensor([1.0, -0.0]), torch.tensor([1.0, 0.0]), np.ones(2), np.ones(2, dtype=np.float32)),
    *(One(1), Other(1), One(2), nn.ReLU(), nn.GELU()),
]


def test_what_differs_has_another_digest():
    assert len({digest_of(value) for value in DIFFERENT}) == len(DIFFERENT)


def test_what_is_the_same_has_the_same():
    strided = torch.arange(6.0).reshape(2, 3).T
    assert digest_of(strided) == digest_of(strided.contiguous()) == digest_of(nn.Parameter(strided))
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": (2,), "a": 1})
    assert digest_of({"x", "y"}) == digest_of({"y", "x"})
    torch.manual_seed(0)
    one = nn.Linear(2, 2)
    torch.manual_seed(0)
    assert digest_of(one) == digest_of(nn.Linear(2, 2)) != digest_of(nn.Linear(2, 2))


def test_an_architecture_is_told_without_addresses():
    class Own(nn.Module):
        def extra_repr(self):
            return f"activation={object.__repr__(self)}"

    assert architecture_of(Own()) == architecture_of(Own())
    assert " at 0x" not in architecture_of(Own())


def test_what_cannot_be_told_is_refused():
    with pytest.raises(TypeError, match="it cannot be told of a SimpleNamespace whether another one is the same"):
        digest_of({"a": [SimpleNamespace()]})


class Warm(nn.Linear):
    def __init__(self, width, heads=2, temperature=1.0):
        super().__init__(width, 1)
        self.heads = heads
        self.temperature = temperature
        self.mean = torch.zeros(width)
        self.calls = 0
        self._cached = 0.0


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 2.0), ("heads", 4), ("mean", torch.ones(3)), ("mode", "sum")]
)
def test_a_plain_setting_of_a_part_tells_it_from_others(name, value):
    model, other = nn.Sequential(Warm(3)), nn.Sequential(Warm(3))
    assert architecture_of(model) == architecture_of(other)
    setattr(other[0], name, value)
    assert architecture_of(model) != architecture_of(other)


def test_what_counts_calls_or_is_private_is_no_setting():
    model, other = nn.Sequential(Warm(3)), nn.Sequential(Warm(3))
    other[0].calls, other[0]._cached, other[0].training = 7, 1.0, False
    assert architecture_of(model) == architecture_of(other)


def test_a_hook_tells_a_part_from_others():
    model, other = nn.Sequential(Warm(3)), nn.Sequential(Warm(3))
    other[0].register_forward_pre_hook(lambda part, inputs: inputs)
    assert architecture_of(model) != architecture_of(other)
