"""Averaged (EMA) weights, as the libraries write them, and what is said of them."""

import copy

import pytest
import torch
from _helpers.checkpoint_files import STATE
from _helpers.states import assert_same_bits
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lwptv_lightning import CheckpointError, TaskVectors, open_checkpoint
from lwptv_lightning.inspection import check

AVERAGES = {name: tensor + 1 for name, tensor in STATE.items()}


def contents(checkpoint):
    return {name: checkpoint.read(name) for name in checkpoint.names}


def averaged_model():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for value in (1.0, 3.0):
        nn.init.constant_(model[0].weight, value)
        average.update_parameters(model)
    return model, average


def of_lightning(folder, make_trainer):
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
    from lightning.pytorch.demos.boring_classes import BoringModel

    callbacks = [EMAWeightAveraging(decay=0.5), ModelCheckpoint(folder / "run", "m", every_n_train_steps=3)]
    limits = {"limit_train_batches": 4, "limit_val_batches": 0}
    make_trainer(max_epochs=1, callbacks=callbacks, enable_checkpointing=True, **limits).fit(BoringModel())
    return folder / "run" / "m.ckpt"


def test_of_a_file_with_both_it_is_said_which_are_taken(make_trainer, tmp_path):
    torch.save({"state_dict": STATE, "state_dict_ema": AVERAGES, "epoch": 3}, tmp_path / "m.pt")
    for path, usual in ((tmp_path / "m.pt", False), (of_lightning(tmp_path, make_trainer), True)):
        for ema in (None, True, False):
            found, averaged = open_checkpoint(path, ema=ema), usual if ema is None else ema
            words = {True: "averaged (EMA) weights", False: "last weights"}[averaged]
            assert (found.averaged, found.metadata["weights"]) == (averaged, words)
            (checked,) = check(open_checkpoint(path, ema=False), {"a": path}, ema=ema)
            assert checked.format.endswith(f", {words}")
    torch.save({"state_dict": STATE}, tmp_path / "one.pt")
    assert (open_checkpoint(tmp_path / "one.pt").averaged, open_checkpoint(tmp_path / "one.pt").metadata) == (None, {})


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"])
def test_averaged_weights_alone_are_taken(key, tmp_path):
    content = {key: AVERAGES, "epoch": 3, "args": {"model": "vit"}, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}
    torch.save(content, tmp_path / "m.pt")
    for ema in (None, True):
        assert_same_bits(contents(open_checkpoint(tmp_path / "m.pt", ema=ema)), AVERAGES)
    with pytest.raises(CheckpointError, match=r"m\.pt: holds averaged \(EMA\) weights alone, and ema=False asks for"):
        open_checkpoint(tmp_path / "m.pt", ema=False)


@pytest.mark.parametrize("wrap", ["module", "state dict", "torch file", "safetensors", "beside the last ones"])
def test_torchs_averaged_model(wrap, tmp_path):
    model, average = averaged_model()
    state, path = average.state_dict(), tmp_path / ("m.safetensors" if wrap == "safetensors" else "m.pt")
    assert "n_averaged" in state
    if wrap == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": model.state_dict(), "ema": state} if wrap.startswith("beside") else state, path)
    source = {"module": average, "state dict": state}.get(wrap, path)
    assert_same_bits(contents(open_checkpoint(source, ema=True)), dict(average.module.state_dict()))
    assert average.module[0].weight.mean() == 2
    if wrap.startswith("beside"):
        assert_same_bits(contents(open_checkpoint(source, ema=False)), dict(model.state_dict()))
        return
    assert set(open_checkpoint(source).names) == set(model.state_dict())
    with pytest.raises(CheckpointError, match=r"holds averaged \(EMA\) weights alone"):
        open_checkpoint(source, ema=False)
    assert set(open_checkpoint(source, prefix="module.").names) == set(model.state_dict())
    assert set(open_checkpoint(source, prefix="").names) == set(state)
    vectors = TaskVectors.open(model.state_dict(), {"a": source}, ema=True)
    assert vectors.stack("0.weight").unique().tolist() == [-1]


def test_a_module_that_is_called_as_a_counter_is_kept():
    state = {"n_averaged": torch.tensor(3), "module.weight": torch.ones(2), "head.weight": torch.ones(2)}
    assert open_checkpoint(state).names == tuple(state)


def test_averages_without_names_are_refused(tmp_path):
    shadows = {"decay": 0.99, "num_updates": 3, "shadow_params": [torch.ones(2)], "collected_params": None}
    for content, ema in ((shadows, None), ({"state_dict": STATE, "ema": shadows}, True)):
        torch.save(copy.deepcopy(content), tmp_path / "m.pt")
        with pytest.raises(CheckpointError, match=r"averages in a list, without the names .* copy_to\(model\.param"):
            open_checkpoint(tmp_path / "m.pt", ema=ema)


def test_averages_in_a_pickled_class_are_refused_by_its_name(tmp_path):
    torch.save({"model": STATE, "ema": AveragedModel(nn.Linear(2, 2))}, tmp_path / "m.pt")
    assert open_checkpoint(tmp_path / "m.pt").names == tuple(STATE)
    with pytest.raises(
        CheckpointError, match=r"place of tensors \(ema\), .* first is 'torch\.optim\.swa_utils\.Averaged"
    ):
        open_checkpoint(tmp_path / "m.pt", ema=True)
