import argparse
import functools
import inspect
import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from _helpers.checkpoint_files import STATE, write_safetensors, write_sharded, write_torch, write_wrapped
from _helpers.states import assert_same_bits
from _helpers.torch_archives import mapping, tensor, whole, write_archive
from torch import nn

from lwptv_lightning.checkpoints import CheckpointError, open_checkpoint


def test_lightnings_averaged_weights(make_trainer, tmp_path):
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
    from lightning.pytorch.demos.boring_classes import BoringModel

    path = tmp_path / "m.ckpt"
    callbacks = [EMAWeightAveraging(decay=0.5), ModelCheckpoint(tmp_path, "m", every_n_train_steps=3)]
    limits = {"limit_train_batches": 4, "limit_val_batches": 0}
    make_trainer(max_epochs=1, callbacks=callbacks, enable_checkpointing=True, **limits).fit(BoringModel())
    content = torch.load(path, weights_only=True)
    averaged, last = content["state_dict"]["layer.weight"], content["current_model_state"]["layer.weight"]
    assert not torch.equal(averaged, last)
    for ema, expected in ((None, averaged), (True, averaged), (False, last)):
        checkpoint = pickle.loads(pickle.dumps(open_checkpoint(path, ema=ema)))
        assert torch.equal(checkpoint.read("weight"), expected)


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema"])
def test_averaged_weights_beside_the_last_ones(key, tmp_path):
    averaged = {name: tensor + 1 for name, tensor in STATE.items()}
    torch.save({"state_dict": STATE, key: averaged}, tmp_path / "m.pt")
    for ema, expected in ((None, STATE), (False, STATE), (True, averaged)):
        assert torch.equal(open_checkpoint(tmp_path / "m.pt", ema=ema).read("w"), expected["w"])


@pytest.mark.parametrize("write", [write_safetensors, write_sharded, write_torch, write_wrapped])
def test_no_averaged_weights(write, tmp_path):
    with pytest.raises(CheckpointError, match=r"no averaged \(EMA\) weights; expected .*state_dict_ema"):
        open_checkpoint(write(tmp_path), ema=True)


def test_a_torchscript_archive_is_not_run(tmp_path):
    class Doubled(nn.Module):
        def forward(self, x):
            return x * 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Doubled(), torch.ones(1)).save(tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m\.pt: holds pickled Python objects, .* safetensors"):
        open_checkpoint(tmp_path / "m.pt")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("wrap", "refusal"),
    [
        (lambda bomb: bomb, r"m\.ckpt: holds pickled Python objects, which .* first is 'posix\.mkdir'.* safetensors"),
        (lambda bomb: {"w": bomb}, r"m\.ckpt: holds pickled .* in the place of tensors \(w\), .*mkdir"),
        (lambda bomb: {"model": bomb, "epoch": 3}, r"in the place of tensors \(model\), .*mkdir"),
        (lambda bomb: {"state_dict": STATE, "hyper_parameters": bomb}, None),
    ],
)
def test_code_in_a_pickle_is_never_run(wrap, refusal, new_format, tmp_path):
    mark = tmp_path / "exploded"
    torch.save(wrap(Bomb(mark)), tmp_path / "m.ckpt", _use_new_zipfile_serialization=new_format)
    if refusal is None:
        assert torch.equal(open_checkpoint(tmp_path / "m.ckpt").read("w"), STATE["w"])
    else:
        with pytest.raises(CheckpointError, match=refusal):
            open_checkpoint(tmp_path / "m.ckpt")
    assert not mark.exists()
    torch.load(tmp_path / "m.ckpt", weights_only=False)
    assert mark.exists()  # so the bomb is a live one


def test_hyper_parameters_of_any_class_are_passed_by(make_trainer, tmp_path):
    from lightning.pytorch.demos.boring_classes import BoringModel

    class Model(BoringModel):
        def __init__(self, **options):
            super().__init__()
            self.save_hyperparameters()

    options = {"path": tmp_path, "args": argparse.Namespace(lr=0.1), "act": functools.partial(nn.functional.gelu)}
    model = Model(dtype=torch.float16, mode=inspect.Parameter.KEYWORD_ONLY, seed=np.int64(3), **options)
    trainer = make_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(model)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "m.ckpt", weights_only=True)
    assert torch.equal(open_checkpoint(tmp_path / "m.ckpt").read("weight"), model.layer.weight)


@pytest.mark.parametrize(("ema", "key"), [(None, "state_dict"), (False, "state_dict"), (True, "state_dict_ema")])
def test_timms_checkpoints(ema, key, tmp_path):
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    averaged = ModelEmaV3(model, decay=0.5)
    nn.init.ones_(model[0].weight)
    args = argparse.Namespace(model="resnet18", output=tmp_path, opt=nn.GELU)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    saver = CheckpointSaver(model, optimizer, args, averaged, checkpoint_dir=tmp_path, recovery_dir=tmp_path)
    saver.save_checkpoint(0, metric=0.5)
    content = torch.load(tmp_path / "model_best.pth.tar", weights_only=False)
    assert not torch.equal(content["state_dict"]["0.weight"], content["state_dict_ema"]["0.weight"])
    checkpoint = pickle.loads(pickle.dumps(open_checkpoint(tmp_path / "model_best.pth.tar", ema=ema)))
    assert_same_bits({name: checkpoint.read(name) for name in checkpoint.names}, content[key])


def test_a_plain_pickle_is_not_run_either(tmp_path):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(CheckpointError, match=r"m\.pkl: "):
        open_checkpoint(tmp_path / "m.pkl")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\0" * 64])
def test_a_file_of_something_else_is_not_called_a_pickle(content, tmp_path):
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.pt: not a readable checkpoint"):
        open_checkpoint(tmp_path / "m.pt")


def test_tied_weights_are_read_under_both_names(tmp_path):
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    model = nn.ModuleDict({"first": first, "second": second})
    torch.save(model.state_dict(), tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    assert torch.equal(checkpoint.read("second.weight"), checkpoint.read("first.weight"))


def test_content_that_is_no_state_dict(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="holds a list, expected a state dict"):
        open_checkpoint(tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"state dict of tensors, but these are none: lr\."):
        open_checkpoint({"w": torch.ones(1), "lr": 0.1})
    with pytest.raises(TypeError, match="a path, a state dict or a module, not int"):
        open_checkpoint(3)


def test_tensors_that_repeat_what_is_stored_are_bounded_by_the_file(tmp_path):
    mask = torch.ones(1, 1).expand(512, 512)
    torch.save({"w": torch.ones(3), "mask": mask, "ids": torch.arange(77).expand(1, -1)}, tmp_path / "m.pt")
    assert torch.equal(open_checkpoint(tmp_path / "m.pt").read("mask"), mask)
    for new_format in (True, False):
        torch.save({"w": torch.ones(1).expand(2**31)}, tmp_path / "m.pt", _use_new_zipfile_serialization=new_format)
        assert (tmp_path / "m.pt").stat().st_size < 2000
        with pytest.raises(CheckpointError, match=r"'w' of shape \(2147483648,\) repeats stored numbers, .*contiguous"):
            open_checkpoint(tmp_path / "m.pt")


def test_one_stored_tensor_under_many_names_is_bounded_by_the_file(tmp_path):
    weight = torch.ones(1 << 16)
    torch.save({f"layer{n}.weight": weight for n in range(24)}, tmp_path / "m.pt")
    assert len(open_checkpoint(tmp_path / "m.pt").names) == 24
    content = whole(
        mapping(**{f"w{n}": tensor((1 << 18,)) for n in range(100)}).replace(b"\x8a\x01\4", b"\x8a\3\0\0\4")
    )
    write_archive(tmp_path / "m.pt", content, {"0": bytes(1 << 20)})
    with pytest.raises(CheckpointError, match="repeats stored numbers"):
        open_checkpoint(tmp_path / "m.pt")


def test_a_file_that_is_no_regular_one(tmp_path):
    os.mkfifo(tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m\.pt: expected a regular file, not a FIFO"):
        open_checkpoint(tmp_path / "m.pt")
