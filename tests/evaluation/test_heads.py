import copy
import pickle

import pytest
import torch
from torch import nn

from lwptv_lightning.evaluation import Heads
from lwptv_lightning.registry import UnknownNameError

NAMES = ("a", "b.c", "half", "keys", "a/b", "b%2Ec")  # among them names of a module's own attributes


@pytest.fixture
def heads():
    return Heads({name: nn.Linear(2, classes) for classes, name in enumerate(NAMES, start=2)})


@pytest.mark.parametrize(
    "copy_of", [lambda heads: heads, copy.deepcopy, lambda heads: pickle.loads(pickle.dumps(heads))]
)
def test_heads_are_a_mapping_from_names(copy_of, heads):
    heads = copy_of(heads)
    assert tuple(heads) == heads.keys() == NAMES
    assert len(heads) == len(NAMES)
    assert dict(heads).keys() == set(NAMES)
    assert [heads[name].out_features for name in NAMES] == [2, 3, 4, 5, 6, 7]
    assert [(name, head.out_features) for name, head in heads.items()] == list(zip(NAMES, range(2, 8), strict=True))
    assert list(heads.values()) == [heads[name] for name in NAMES]
    assert "b.c" in heads
    assert "c" not in heads
    assert heads
    assert not Heads({})


def test_state_dict_escapes_dots(heads):
    assert list(heads.state_dict())[:4] == ["a.weight", "a.bias", "b%2Ec.weight", "b%2Ec.bias"]
    twin = Heads({name: nn.Linear(2, classes) for classes, name in enumerate(NAMES, start=2)})
    twin.load_state_dict(heads.state_dict())
    assert all(torch.equal(twin[name].weight, heads[name].weight) for name in NAMES)
    assert len(list(heads.parameters())) == 2 * len(NAMES)


def test_loaders_have_their_heads(heads):
    assert heads.of_loader("ood/b.c") == "b.c"
    heads.require_for(["id/a", "ood/a/b"])
    with pytest.raises(UnknownNameError, match="unknown head for loader 'id/halv': 'halv'. Did you mean 'half'"):
        heads.require_for(["id/a", "id/halv"])
    with pytest.raises(UnknownNameError, match=r"unknown head 'b\.d'. Did you mean 'b\.c'"):
        heads["b.d"]
    assert Heads({}).of_loader("id/z") is None
    Heads({}).require_for(["id/z"])


def test_a_head_acts_on_the_output_or_on_features(make_vit):
    model, inputs = make_vit(num_classes=48), torch.randn(2, 3, 32, 32)
    head = nn.Linear(48, 3)
    assert torch.equal(Heads({"a": head}).logits(model, inputs, "a"), head(model(inputs)))
    features = model.forward_head(model.forward_features(inputs), pre_logits=True)
    assert torch.equal(Heads({"a": head}, on_features=True).logits(model, inputs, "a"), head(features))


def test_a_head_that_is_no_module():
    with pytest.raises(TypeError, match="head of 'a' must be a module, not a str"):
        Heads({"a": "linear"})


@pytest.mark.parametrize("bias", [True, False])
def test_linear_heads_on_features_are_restored(bias):
    stored = Heads({"b.c": nn.Linear(2, 3, bias=bias)}, on_features=True)
    heads = Heads({})
    heads.restore_(
        stored.described(), {f"heads.{name}": value for name, value in stored.state_dict().items()}, "heads."
    )
    assert torch.equal(heads["b.c"].weight, stored["b.c"].weight)
    assert heads.on_features
    assert heads.state_dict().keys() == stored.state_dict().keys()


def test_other_heads_must_be_given():
    stored = Heads({"x": nn.Linear(2, 3)})
    with pytest.raises(ValueError, match="has a head for 'x': give heads="):
        Heads({}).restore_(stored.described(), stored.state_dict(), "")
    own = Heads({"x": nn.Identity()})
    own.restore_(stored.described(), stored.state_dict(), "")
    assert isinstance(own["x"], nn.Identity)


def test_a_head_of_other_features_than_the_models_output_is_refused(make_vit):
    model, inputs = make_vit(num_classes=3), torch.randn(2, 3, 32, 32)
    head = nn.Linear(48, 5)
    message = (
        r"head of 'a' takes 48 features.*returns \(2, 3\), behind its own classifier 'head'.*in_place_of = \('head'"
    )
    with pytest.raises(ValueError, match=message):
        Heads({"a": head}).logits(model, inputs, "a")
    head.in_place_of = ("head",)
    assert Heads({"a": head}).logits(model, inputs, "a").shape == (2, 5)
    with pytest.raises(ValueError, match=r"takes 48 features, and Identity returns \(2, 7\)\. Build.*output_key="):
        Heads({"a": nn.Linear(48, 5)}).logits(nn.Identity(), torch.zeros(2, 7), "a")
