"""State dicts whose tensors are no plain ones: read where they hold values, and refused by name where not."""

import collections

import pytest
import torch
from _helpers.states import assert_same_bits, noise
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lwptv_lightning import CheckpointError, TaskVectors, merge, open_checkpoint, save_merged
from lwptv_lightning.inspection import check, diff

WEIGHT = torch.linspace(-1, 1, 64).reshape(8, 8)


class Named(torch.Tensor):
    """A class that changes nothing, as torchvision's images do."""


class Wrapper(torch.Tensor):
    """A class that holds no values itself, as quantised weights and shards do."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(function)


def fake():
    with FakeTensorMode():
        return torch.empty(8, 8)


def batched():
    seen = []
    torch.func.vmap(lambda row: (seen.append(row), row)[1])(WEIGHT[None])
    return seen[0]


REFUSED = {
    "not initialised": lambda: nn.parameter.UninitializedParameter(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "sparse or quantized": lambda: torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8),
    "sparse or quantized; make them dense": lambda: WEIGHT.to_sparse(),
    "on the meta device": lambda: WEIGHT.to("meta"),
    "of a class of their own": lambda: Wrapper(WEIGHT),
    "of a class of": fake,
    "without values": batched,
    "without values, as": lambda: torch._to_functional_tensor(WEIGHT),
    "of a dtype that torch does not compute in": lambda: torch.zeros(8, 8, dtype=torch.uint8).view(torch.bits8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("words", REFUSED)
def test_a_tensor_without_readable_values_is_named(words):
    state = {"fc.weight": REFUSED[words]()}
    with pytest.raises(CheckpointError, match=rf"state dict: these tensors are {words}.*: fc\.weight\."):
        open_checkpoint(state)
    (found,) = check({"fc.weight": WEIGHT}, {"a": state})
    assert words in found.verdict
    with pytest.raises(CheckpointError, match=r"fc\.weight"):
        diff({"fc.weight": WEIGHT}, state)


def test_modules_that_hold_no_values_yet():
    with pytest.raises(CheckpointError, match=r"LazyLinear: .* not initialised.*: weight, bias\."):
        open_checkpoint(nn.LazyLinear(2))
    with pytest.raises(CheckpointError, match=r"Linear: .* on the meta device.*: weight, bias\."):
        open_checkpoint(nn.Linear(2, 2, device="meta"))


def endless():
    content = {}
    content["model"] = content
    return content


def deep():
    content = {"w": WEIGHT}
    for _ in range(5000):
        content = {"state_dict": content}
    return content


@pytest.mark.parametrize("make", [endless, deep])
def test_state_dicts_in_one_another_without_an_end(make, tmp_path):
    with pytest.raises(CheckpointError, match="in one another without an end"):
        open_checkpoint(make())
    if make is endless:
        torch.save(make(), tmp_path / "endless.pt")
        with pytest.raises(CheckpointError, match=r"endless\.pt.* in one another without an end"):
            open_checkpoint(tmp_path / "endless.pt")


@pytest.mark.parametrize(
    "state",
    [{1: WEIGHT}, {("a",): WEIGHT}, {None: WEIGHT}, {"w": None}, {"w": 1.0}, {"w": WEIGHT.numpy()}, {"w": [WEIGHT]}],
    ids=str,
)
def test_what_is_no_state_dict_of_tensors(state):
    with pytest.raises(CheckpointError, match=r"(texts as names, not |these are none: ).*[wa1N]"):
        open_checkpoint(state)


@pytest.mark.parametrize("source", [nn.Linear(2, 2).named_parameters(), list({"w": WEIGHT}.items()), None, 3, b"x"])
def test_what_is_no_checkpoint(source):
    with pytest.raises(TypeError, match="a checkpoint is a path, a state dict or a module, not "):
        open_checkpoint(source)


PLAIN = {
    "parameters": lambda tensor: nn.Parameter(tensor.clone()),
    "results of a computation": lambda tensor: nn.Parameter(tensor.clone()) * 1,
    "a class that changes nothing": lambda tensor: tensor.as_subclass(Named),
    "lazily negated": lambda tensor: torch._neg_view(-tensor),
    "part of a larger one": lambda tensor: torch.cat([tensor, tensor])[: len(tensor)],
    "transposed": lambda tensor: tensor.t().contiguous().t(),
}


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "in a file"])
@pytest.mark.parametrize("kind", PLAIN)
def test_odd_but_readable_tensors_merge_as_their_values_do(kind, stored, tmp_path):
    base = {"fc.weight": WEIGHT, "fc.bias": WEIGHT[0]}
    tuned = noise(base, 1)
    made = {name: PLAIN[kind](tensor) for name, tensor in tuned.items()}
    assert all(torch.equal(made[name].detach(), tuned[name]) for name in tuned)
    if stored and kind == "a class that changes nothing":
        pytest.skip("torch.load refuses the class")
    source = made
    if stored:
        source = tmp_path / "tuned.pt"
        torch.save(made, source)
    checkpoint = open_checkpoint(source)
    assert not any(checkpoint.read(name).requires_grad for name in checkpoint.names)
    assert all(type(checkpoint.read(name)) is torch.Tensor for name in checkpoint.names)
    expected = merge(TaskVectors.open(base, {"a": tuned}), "ties")
    assert_same_bits(merge(TaskVectors.open(base, {"a": source}), "ties"), expected)
    written = save_merged(TaskVectors.open(source, {"a": base}), "ties", tmp_path / "merged.safetensors")
    assert set(open_checkpoint(written).names) == set(base)


def test_a_mapping_of_any_class_is_a_state_dict():
    checkpoint = open_checkpoint(collections.OrderedDict(model=collections.ChainMap({"w": WEIGHT})))
    assert torch.equal(checkpoint.read("w"), WEIGHT)
