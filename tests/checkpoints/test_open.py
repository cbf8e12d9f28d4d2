import json
import os
import pickle
import random
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lwptv_lightning.checkpoints import CheckpointError, align_prefix, open_checkpoint, some_of

STATE = {
    "w": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "steps": torch.tensor(7),
}


def write_safetensors(folder):
    save_file(STATE, folder / "model.safetensors", metadata={"origin": "here"})
    return folder / "model.safetensors"


def write_sharded(folder):
    names = list(STATE)
    shards = {"a.safetensors": names[:1], "b.safetensors": names[1:]}
    for shard, part in shards.items():
        save_file({name: STATE[name] for name in part}, folder / shard)
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder / "model.safetensors.index.json"


def write_sharded_folder(folder):
    return write_sharded(folder).parent


def write_torch(folder):
    torch.save(STATE, folder / "model.pt")
    return folder / "model.pt"


def write_legacy_torch(folder):
    torch.save(STATE, folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth"


def write_wrapped(folder):
    torch.save({"epoch": 3, "state_dict": STATE}, folder / "model.tar")
    return folder / "model.tar"


WRITERS = [write_safetensors, write_sharded, write_sharded_folder, write_torch, write_legacy_torch, write_wrapped]


def assert_holds_state(checkpoint):
    assert set(checkpoint.names) == set(STATE)
    for name, tensor in STATE.items():
        assert checkpoint.headers[name].shape == tuple(tensor.shape)
        assert checkpoint.headers[name].dtype == checkpoint.read(name).dtype == tensor.dtype
        assert torch.equal(checkpoint.read(name), tensor)


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


def test_opening_safetensors_reads_no_tensor(tmp_path, monkeypatch):
    path = write_safetensors(tmp_path)
    raw = bytearray(path.read_bytes())
    header_end = 8 + int.from_bytes(raw[:8], "little")
    checkpoint = open_checkpoint(path)
    raw[header_end:] = bytes(len(raw) - header_end)  # the data is zeroed after the header was read
    path.write_bytes(raw)
    assert checkpoint.headers["w"].shape == (2, 3)
    assert not checkpoint.read("w").any()


def test_metadata_of_safetensors(tmp_path):
    assert open_checkpoint(write_safetensors(tmp_path)).metadata == {"origin": "here"}


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


# Lightning


def lightning_checkpoint(make_trainer, path, **children):
    from lightning.pytorch import LightningModule
    from torch.utils.data import DataLoader, TensorDataset

    class Wrapper(LightningModule):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"lr": 0.1})
            for name, child in children.items():
                setattr(self, name, child)

        def training_step(self, batch, batch_idx):
            return sum(child(batch[0]).sum() for child in self.children())

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    module = Wrapper()
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=2))
    trainer.save_checkpoint(path)
    return module


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


# Averaged weights


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


# torch.compile and DistributedDataParallel


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


# What cannot be opened


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
@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"state_dict": STATE, "hyper_parameters": bomb}])
def test_code_in_a_pickle_is_never_run(wrap, new_format, tmp_path):
    mark = tmp_path / "exploded"
    torch.save(wrap(Bomb(mark)), tmp_path / "m.ckpt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match=r"m\.ckpt: holds pickled Python objects, .* safetensors"):
        open_checkpoint(tmp_path / "m.ckpt")
    assert not mark.exists()
    torch.load(tmp_path / "m.ckpt", weights_only=False)
    assert mark.exists()  # so the bomb is a live one


def test_a_plain_pickle_is_not_run_either(tmp_path):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(CheckpointError, match=r"m\.pkl: "):
        open_checkpoint(tmp_path / "m.pkl")
    assert not (tmp_path / "exploded").exists()


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


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\0" * 64])
def test_a_file_of_something_else_is_not_called_a_pickle(content, tmp_path):
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.pt: not a readable checkpoint"):
        open_checkpoint(tmp_path / "m.pt")


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at '/nowhere/m\.pt'"):
        open_checkpoint("/nowhere/m.pt")


def test_missing_shard(tmp_path):
    path = write_sharded(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json: shards named in the index are missing: b\.safetensors"):
        open_checkpoint(path)


def test_index_that_disagrees_with_its_shards(tmp_path):
    path = write_sharded(tmp_path)
    index = json.loads(path.read_text())
    index["weight_map"]["ghost"] = "a.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index and shards disagree on ghost\."):
        open_checkpoint(path)


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_index_that_is_none(text, tmp_path):
    (tmp_path / "m.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="not an index of sharded safetensors"):
        open_checkpoint(tmp_path / "m.index.json")


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
        assert torch.equal(checkpoint.read("post_layernorm.weight"), model.post_layernorm.weight)


def test_tied_weights_are_read_under_both_names(tmp_path):
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    model = nn.ModuleDict({"first": first, "second": second})
    torch.save(model.state_dict(), tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    assert torch.equal(checkpoint.read("second.weight"), checkpoint.read("first.weight"))


def test_folder_without_or_with_several_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        open_checkpoint(tmp_path)
    for name in ("a", "b"):
        save_file(STATE, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"several checkpoints \(a\.safetensors, b\.safetensors\); name one"):
        open_checkpoint(tmp_path)


def test_content_that_is_no_state_dict(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="holds a list, expected a state dict"):
        open_checkpoint(tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"state dict of tensors, but these are none: lr\."):
        open_checkpoint({"w": torch.ones(1), "lr": 0.1})
    with pytest.raises(TypeError, match="a path, a state dict or a module, not int"):
        open_checkpoint(3)


def test_some_of_says_how_many_more():
    assert some_of("abc", most=2) == "a, b, and 1 more."
    assert some_of("ab", most=2) == "a, b."
