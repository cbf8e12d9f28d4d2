import json
import pickle
import random
import subprocess
import sys

import pytest
import torch
from _helpers.checkpoint_files import (
    STATE,
    assert_holds_state,
    lightning_checkpoint,
    write_legacy_torch,
    write_safetensors,
    write_sharded,
    write_sharded_folder,
    write_torch,
    write_wrapped,
)
from safetensors.torch import save_file
from torch import nn

from lwptv_lightning.checkpoints import CheckpointError, open_checkpoint

WRITERS = [write_safetensors, write_sharded, write_sharded_folder, write_torch, write_legacy_torch, write_wrapped]


@pytest.mark.parametrize("as_path", [str, lambda path: path], ids=["str", "Path"])
@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_headers_and_tensors(write, as_path, tmp_path):
    assert_holds_state(open_checkpoint(as_path(write(tmp_path))))


READ = "import pickle, sys; print(pickle.load(sys.stdin.buffer).read('w').tolist())"


@pytest.mark.parametrize("write", [write_safetensors, write_sharded, write_torch])
def test_pickle_holds_paths_and_no_tensors(write, tmp_path):
    torch_like = {"w": torch.zeros(5000), "half": STATE["half"], "steps": STATE["steps"]}
    original, STATE["w"] = STATE["w"], torch_like["w"]
    try:
        checkpoint = open_checkpoint(write(tmp_path))
    finally:
        STATE["w"] = original
    checkpoint.read("w")
    pickled = pickle.dumps(checkpoint)
    assert len(pickled) < 5000  # the tensor alone takes 20000 bytes
    assert torch.equal(pickle.loads(pickled).read("w"), torch_like["w"])


def test_another_process_reads_a_pickled_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_safetensors(tmp_path)
    checkpoint = open_checkpoint("model.safetensors")  # a relative path
    checkpoint.read("w")
    monkeypatch.chdir("/")
    command = [sys.executable, "-c", READ]
    done = subprocess.run(command, input=pickle.dumps(checkpoint), capture_output=True, check=True, timeout=120)
    assert json.loads(done.stdout) == STATE["w"].tolist()


def test_state_dict_and_module_are_copied():
    module = nn.Linear(2, 2)
    before = module.weight.detach().clone()
    checkpoints = [open_checkpoint(module), open_checkpoint(module.state_dict())]
    module.weight.data.zero_()
    assert all(torch.equal(checkpoint.read("weight"), before) for checkpoint in checkpoints)


def test_an_open_checkpoint_is_taken_as_it_is():
    checkpoint = open_checkpoint(STATE)
    assert open_checkpoint(checkpoint) is checkpoint


def test_an_open_lightning_checkpoint_loses_no_second_prefix(make_trainer, tmp_path):
    lightning_checkpoint(make_trainer, tmp_path / "m.ckpt", net=nn.Sequential(nn.Linear(2, 3)))
    checkpoint = open_checkpoint(tmp_path / "m.ckpt")
    assert checkpoint.names == open_checkpoint(checkpoint).names == ("0.weight", "0.bias")


def test_extra_state_is_no_tensor_and_left_out():
    assert open_checkpoint({"w": torch.ones(1), "quant._extra_state": {"scale": 1}}).names == ("w",)


# What cannot be opened


@pytest.mark.parametrize("write", [write_safetensors, write_torch, write_legacy_torch])
def test_a_cut_off_file_is_named(write, tmp_path):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=rf"{path.name}: not a readable"):
        open_checkpoint(path)


@pytest.mark.filterwarnings("ignore")  # torch warns of odd pickles before it fails
@pytest.mark.parametrize("write", [write_safetensors, write_torch, write_legacy_torch])
def test_damage_anywhere_is_a_named_error_or_harmless(write, tmp_path):
    path = write(tmp_path)
    intact = path.read_bytes()
    rng = random.Random(0)
    failures = []
    for _ in range(60):
        damaged = bytearray(intact)
        for _ in range(3):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice([None, rng.randrange(len(damaged))])])
        try:
            open_checkpoint(path)
        except CheckpointError as error:
            failures.append(str(error))
    assert len(failures) > 20
    assert all(path.name in message for message in failures)


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at '/nowhere/m\.pt'"):
        open_checkpoint("/nowhere/m.pt")


def test_folder_of_a_transformers_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=4))
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="4KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for folder in (tmp_path / "one", tmp_path / "many", tmp_path):
        checkpoint = open_checkpoint(folder)
        assert set(checkpoint.names) == set(model.state_dict())
        name = next(name for name in checkpoint.names if name.endswith("post_layernorm.weight"))
        assert torch.equal(checkpoint.read(name), model.state_dict()[name])


def test_an_empty_path_is_not_the_working_folder(tmp_path, monkeypatch):
    save_file(STATE, tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert_holds_state(open_checkpoint("."))
    with pytest.raises(CheckpointError, match="path is empty: ''"):
        open_checkpoint("")


def test_folder_without_or_with_several_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        open_checkpoint(tmp_path)
    for name in ("a", "b"):
        save_file(STATE, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"several checkpoints \(a\.safetensors, b\.safetensors\); name one"):
        open_checkpoint(tmp_path)
