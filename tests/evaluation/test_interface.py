from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lwptv_lightning.evaluation import Interface
from lwptv_lightning.evaluation.interface import require_one_tensor
from lwptv_lightning.registry import UnknownNameError


@dataclass
class Fields:
    images: object
    labels: object


class Keyed:
    """Has keys and is no `Mapping`, as a tensordict may be."""

    def __init__(self, **parts):
        self._parts = parts

    def keys(self):
        return self._parts.keys()

    def __getitem__(self, key):
        return self._parts[key]


Named = namedtuple("Named", ("images", "labels", "index"))
KINDS = {
    "dict": {"index": 0, "images": 1, "labels": 2},
    "user dict": UserDict(images=1, labels=2),
    "keys alone": Keyed(images=1, labels=2),
    "fields": Fields(1, 2),
    "named tuple": Named(1, 2, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_by_name(kind):
    batch = KINDS[kind]
    assert Interface(("images", "labels")).unpack(batch) == (1, 2)
    assert Interface((["images"], "labels")).unpack(batch) == ({"images": 1}, 2)
    assert Interface(("images", "labels")).alone(batch) is None
    with pytest.raises(UnknownNameError, match=r"key in batch_keys: 'label'. Did you mean 'labels'\? Known: .*images"):
        Interface(("images", "label")).unpack(batch)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "named tuple"])  # which begins with inputs
def test_without_keys_those_that_a_batch_has_are_told(kind):
    with pytest.raises(TypeError, match=r"not \w+; override unpack.*batch_keys=\(inputs, targets\); it has .*images"):
        Interface().unpack(KINDS[kind])


def test_parts_of_a_batch_by_place():
    assert Interface((1, 0)).unpack(["label", "image", "path"]) == ("image", "label")
    assert Interface((0, -1)).unpack((1, 2, 3)) == (1, 3)
    with pytest.raises(UnknownNameError, match="key in batch_keys: 3. Known: 0, 1, 2"):
        Interface((0, 3)).unpack((1, 2, 3))
    with pytest.raises(TypeError, match="batch_keys names 'images', but there is a Tensor"):
        Interface(("images", "labels")).unpack(torch.zeros(2))


def test_batches_without_targets():
    images = torch.zeros(2, 3)
    assert Interface().alone(images)[0] is images
    assert Interface().alone([images])[0] is images
    assert Interface().alone([images, images]) is None
    assert Interface(("images", "labels")).alone({"images": images})[0] is images
    assert Interface((("images", "mask"), "labels")).alone({"images": images, "mask": 1}) == (
        {"images": images, "mask": 1},
    )
    with pytest.raises(UnknownNameError, match="'images'. Did you mean 'image'"):
        Interface(("images", "labels")).alone({"image": images})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("images", r"batch_keys must be a pair such as .*, not 'images'"),
        (("images",), "must be a pair"),
        (("a", "b", "c"), "must be a pair"),
        ((1.0, "labels"), "key of inputs in batch_keys must be a name or a whole number, not 1.0"),
        (("images", True), "key of targets in batch_keys must be .*, not True"),
        (((), "labels"), "must have names"),
        (((0, 1), 2), "inputs that go to the model by name must have names"),
    ],
)
def test_keys_that_are_none(keys, message):
    with pytest.raises(TypeError, match=message):
        Interface(keys)


def test_inputs_go_by_name_where_several_keys_are_given():
    def model(left, right=None, **rest):
        return left, right, rest

    assert Interface().run(model, 1) == (1, None, {})
    assert Interface((("left", "right"), "y")).run(model, {"left": 1, "right": 2}) == (1, 2, {})
    with pytest.raises(TypeError, match=r"inputs must be a mapping of names to tensors, as batch_keys=.* says"):
        Interface((("left", "right"), "y")).run(model, torch.zeros(1))


class Returns(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, inputs):
        return self.output


LOGITS = torch.eye(2)
OUTPUTS = {
    "dict": ({"loss": torch.tensor(1.0), "logits": LOGITS}, "logits"),
    "tuple": ((torch.tensor(1.0), LOGITS), 1),
    "from the end": ((torch.tensor(1.0), LOGITS), -1),
    "fields": (Fields(torch.tensor(1.0), LOGITS), "labels"),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_part_of_an_output(kind):
    output, key = OUTPUTS[kind]
    assert Interface(output_key=key).output(Returns(output), 0) is LOGITS
    assert Interface().output(Returns(output), 0) is output


def test_an_output_of_transformers_by_name_and_by_place():
    from transformers.modeling_outputs import ImageClassifierOutput

    output = ImageClassifierOutput(logits=LOGITS, hidden_states=(LOGITS,))
    assert Interface(output_key="logits").output(Returns(output), 0) is LOGITS
    assert Interface(output_key=0).output(Returns(output), 0) is LOGITS
    with pytest.raises(UnknownNameError, match=r"'logit'. Did you mean 'logits'\? Known: logits, hidden_states, 0, 1"):
        Interface(output_key="logit").output(Returns(output), 0)
    with pytest.raises(TypeError, match="'hidden_states' of what Returns returns is a tuple, expected .*logits"):
        Interface(output_key="hidden_states").output(Returns(output), 0)
    with pytest.raises(
        TypeError, match=r"returns an ImageClassifierOutput with the keys logits, hidden_states.*output_key='logits'"
    ):
        require_one_tensor(output, Returns(output))


def test_one_tensor_has_no_parts():
    with pytest.raises(TypeError, match=r"output_key=0: Returns returns one tensor of shape \(2, 2\)"):
        Interface(output_key=0).output(Returns(LOGITS), 0)
    assert require_one_tensor(LOGITS, Returns(0)) is LOGITS
    with pytest.raises(TypeError, match=r"Returns returns a tuple of 2, expected a tensor of logits.*output_key=0"):
        require_one_tensor((1, LOGITS), Returns(0))


@pytest.mark.parametrize("key", [1.5, True, ["logits"]])
def test_an_output_key_that_is_none(key):
    with pytest.raises(TypeError, match="output_key must be a name or a whole number"):
        Interface(output_key=key)


def test_plain_values_and_back():
    for interface in (Interface(), Interface((("a", "b"), "y"), "logits"), Interface((1, 0), -1)):
        assert Interface(**interface.to_dict()) == interface
