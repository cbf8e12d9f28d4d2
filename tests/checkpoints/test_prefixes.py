import pickle

import pytest
import torch
from _helpers.checkpoint_files import STATE, assert_holds_state, lightning_checkpoint
from torch import nn

from lwptv_lightning.checkpoints import CheckpointError, align_prefix, open_checkpoint


def test_lightning_checkpoint_loses_the_prefix_of_its_only_attribute(make_trainer, tmp_path):
    module = lightning_checkpoint(make_trainer, tmp_path / "m.ckpt", net=nn.Linear(2, 3))
    checkpoint = open_checkpoint(tmp_path / "m.ckpt")
    assert checkpoint.names == ("weight", "bias")
    assert torch.equal(checkpoint.read("weight"), module.net.weight)
    assert torch.equal(pickle.loads(pickle.dumps(checkpoint)).read("weight"), module.net.weight)


def test_lightning_checkpoint_of_two_attributes(make_trainer, tmp_path):
    path = tmp_path / "m.ckpt"
    module = lightning_checkpoint(make_trainer, path, left=nn.Linear(2, 3), right=nn.Linear(2, 3))
    assert open_checkpoint(path).names == ("left.weight", "left.bias", "right.weight", "right.bias")
    with pytest.raises(CheckpointError, match=r"several prefixes, 'left\.', 'right\.'; name one with prefix="):
        align_prefix(open_checkpoint(path), ["weight", "bias"])
    given = open_checkpoint(path, prefix="right.")
    assert torch.equal(given.read("weight"), module.right.weight)


def test_empty_prefix_keeps_the_names_of_a_lightning_checkpoint(make_trainer, tmp_path):
    lightning_checkpoint(make_trainer, tmp_path / "m.ckpt", net=nn.Linear(2, 3))
    assert open_checkpoint(tmp_path / "m.ckpt", prefix="").names == ("net.weight", "net.bias")


def test_prefixes_strip_one_after_the_other():
    checkpoint = open_checkpoint({"a.b.w": torch.tensor([3.0])}).without_prefix("a.").without_prefix("b.")
    assert checkpoint.read("w").item() == 3


def test_prefix_that_no_name_has():
    with pytest.raises(CheckpointError, match=r"state dict: no tensor starts with prefix='net\.'\. w, half, steps\."):
        open_checkpoint(STATE, prefix="net.")


def test_align_prefix_takes_the_prefix_that_covers_most_names():
    state = {name: torch.ones(1) for name in ("ema.w", "model.net.w", "model.net.b")}
    assert align_prefix(open_checkpoint(state), ["w", "b"]).names == ("w", "b")


@pytest.mark.parametrize("names", [["net.w"], ["other"]])
def test_align_prefix_leaves_known_and_unrelated_names(names):
    checkpoint = open_checkpoint({"net.w": torch.ones(1)})
    assert align_prefix(checkpoint, names) is checkpoint


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_out(prefix):
    assert_holds_state(open_checkpoint({prefix + name: tensor for name, tensor in STATE.items()}))


def test_a_compiled_part_loses_its_prefix():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch.compile(nn.Linear(2, 2))

    assert open_checkpoint(Whole()).names == ("backbone.weight", "backbone.bias")


def test_a_module_called_module_beside_others_keeps_its_name():
    state = {"module.w": torch.ones(1), "head.w": torch.ones(1)}
    assert open_checkpoint(state).names == tuple(state)


def test_a_given_prefix_may_be_a_wrappers():
    assert open_checkpoint({"module.w": torch.ones(1)}, prefix="module.").names == ("w",)
