import copy
import pickle

import pytest
import torch
from torch import nn

from lwptv_lightning.functional import keep_plain_names_, plain_module, plain_name, plain_state, uncompile_


def compiled(module):
    return torch.compile(module, backend="eager")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("_orig_mod.a.weight", "a.weight"),
        ("a._orig_mod.b._orig_mod.weight", "a.b.weight"),
        ("a._orig_mod._orig_mod.weight", "a.weight"),
        ("a._orig_mod", "a"),
        ("_orig_mod", ""),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
        ("_orig_mods.weight", "_orig_mods.weight"),
    ],
)
def test_names(name, plain):
    assert plain_name(name) == plain


def test_the_state_of_a_compiled_module_is_that_of_the_plain_one():
    inner = nn.Linear(2, 2)
    model = compiled(nn.Sequential(compiled(inner), nn.ReLU()))
    assert list(plain_state(model)) == ["0.weight", "0.bias"]
    assert plain_state(model, keep_vars=True)["0.weight"] is inner.weight
    assert isinstance(plain_module(model), nn.Sequential)
    assert plain_module(inner) is inner


def test_nothing_stays_compiled():
    inner = nn.Linear(2, 2)
    model = uncompile_(compiled(nn.Sequential(compiled(inner), nn.ReLU())))
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    assert model[0] is inner


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        keep_plain_names_(self)


@pytest.mark.parametrize("copied", [lambda module: module, copy.deepcopy])
def test_a_state_dict_has_plain_names_and_takes_both(copied):
    model = nn.ModuleDict({"outer": copied(Outer(compiled(nn.Sequential(nn.Linear(2, 2)))))})
    state = model.state_dict()
    assert list(state) == ["outer.inner.0.weight", "outer.inner.0.bias"]
    for names in (list(state), [f"outer.inner._orig_mod.0.{name}" for name in ("weight", "bias")]):
        model.load_state_dict(dict(zip(names, (torch.ones(2, 2), torch.zeros(2)), strict=True)))
        assert torch.equal(plain_module(model["outer"].inner)[0].weight, torch.ones(2, 2))
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})
    plain = Outer(nn.Linear(2, 2))
    plain.load_state_dict({"inner._orig_mod.weight": torch.ones(2, 2), "inner._orig_mod.bias": torch.ones(2)})
    assert torch.equal(plain.inner.weight, torch.ones(2, 2))
    assert list(pickle.loads(pickle.dumps(plain)).state_dict()) == ["inner.weight", "inner.bias"]
