"""What is no weight is told by names and by a model's buffers."""

import pytest
import torch
from torch import nn

from lwptv_lightning.task_vectors import running_statistics, state_among


def test_both_must_stand_side_by_side():
    names = ["bn.running_mean", "bn.running_var", "ema.running_mean", "running_mean", "running_var", "x_running_var"]
    assert running_statistics(names) == {"bn.running_mean", "bn.running_var", "running_mean", "running_var"}


@pytest.mark.parametrize(
    "computed",
    ["layers.0.rotary_emb.inv_freq", "blocks.0.attn_mask", "h.0.attn.masked_bias", "inv_freq"],
)
def test_what_a_model_computes_is_told_by_its_name(computed):
    found = state_among([computed, "fc.weight"])
    assert (found.averaged, found.computed) == (frozenset(), {computed})


class Kept(nn.Module):
    """Parameters and buffers of every kind."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(3, 3)
        self.weight_normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
        self.old_spectral = nn.utils.spectral_norm(nn.Linear(3, 3))
        self.norm = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
        self.register_buffer("codebook_average", torch.rand(4))
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
        self.register_buffer("not_saved", torch.rand(2), persistent=False)


def test_a_model_tells_its_buffers_from_its_parameters():
    model = Kept()
    state = model.state_dict()
    floating = [name for name in state if state[name].is_floating_point()]
    found = state_among(floating, model, state.__getitem__)
    assert found.averaged == {"norm.running_mean", "norm.running_var", "codebook_average"}
    vectors = {f"spectral.parametrizations.weight.0._{name}" for name in "uv"}
    assert found.computed == {"mask", *vectors, *(f"old_spectral.weight_{name}" for name in "uv")}
    parameters = {name for name, _ in model.named_parameters()}
    assert {name for name in floating if name not in found} == parameters


def test_names_alone_tell_all_but_the_models_own_buffers():
    state = Kept().state_dict()
    floating = [name for name in state if state[name].is_floating_point()]
    with_model, without = state_among(floating, Kept(), state.__getitem__), state_among(floating)
    assert with_model.averaged - without.averaged == {"codebook_average"}
    assert with_model.computed - without.computed == {"mask"}


def test_a_parameter_is_a_weight_whatever_its_name():
    model = nn.Module()
    model.running_mean, model.running_var = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    assert not state_among(["running_mean", "running_var"], model)


def test_the_buffers_of_a_compiled_model_are_told_too():
    model = Kept()
    compiled = torch.compile(model)
    assert state_among(["codebook_average"], compiled).averaged == {"codebook_average"}
    assert state_among(["_orig_mod.codebook_average"], compiled).averaged == {"_orig_mod.codebook_average"}
