import pytest
import torch
from _helpers.states import assert_same_bits
from torch import nn

from lwptv_lightning.merging import gather_state


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)),
            "encoder_of_another": nn.Linear(1, 1),
        }
    )


@pytest.mark.parametrize("on_rank_zero", [False, True])
def test_a_submodule_has_its_own_names(model, on_rank_zero):
    assert_same_bits(gather_state(model, "encoder", on_rank_zero=on_rank_zero), model["encoder"].state_dict())
    assert_same_bits(gather_state(model, "encoder.0", on_rank_zero=on_rank_zero), model["encoder"][0].state_dict())


def test_the_root_is_the_empty_path(model):
    assert_same_bits(gather_state(model), model.state_dict())


def test_a_path_without_tensors_gives_none(model):
    assert gather_state(model, "decoder") == {}
    assert gather_state(model, "enc") == {}


def test_wrappers_of_torch_compile_are_not_in_the_names(model):
    expected = model.state_dict()
    model["encoder"] = torch.compile(model["encoder"])
    assert_same_bits(
        gather_state(torch.compile(model), "encoder"),
        {name.removeprefix("encoder."): tensor for name, tensor in expected.items() if name.startswith("encoder.")},
    )


def test_what_is_no_tensor_is_left_out(model):
    class WithState(nn.Linear):
        def get_extra_state(self):
            return {"steps": 3}

        def set_extra_state(self, state):
            pass

    assert gather_state(WithState(1, 1)).keys() == {"weight", "bias"}
