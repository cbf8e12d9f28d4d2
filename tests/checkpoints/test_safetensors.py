import json

import pytest
import torch
from _helpers.checkpoint_files import write_safetensors as write_state
from _helpers.checkpoint_files import write_sharded
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lwptv_lightning import CheckpointError, open_checkpoint
from lwptv_lightning.checkpoints import (
    SAFETENSORS_DTYPES,
    SafetensorsWriter,
    TensorHeader,
    write_safetensors,
)


def test_opening_safetensors_reads_no_tensor(tmp_path, monkeypatch):
    path = write_state(tmp_path)
    raw = bytearray(path.read_bytes())
    header_end = 8 + int.from_bytes(raw[:8], "little")
    checkpoint = open_checkpoint(path)
    raw[header_end:] = bytes(len(raw) - header_end)  # the data is zeroed after the header was read
    path.write_bytes(raw)
    assert checkpoint.headers["w"].shape == (2, 3)
    assert not checkpoint.read("w").any()


def test_metadata_of_safetensors(tmp_path):
    assert open_checkpoint(write_state(tmp_path)).metadata == {"origin": "here"}


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


def test_tensors_that_share_memory_or_are_not_contiguous(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "whole": whole,
        "tied": whole,
        "row": whole[1],
        "turned": whole.T,
        "grad": whole.clone().requires_grad_(),
    }
    path = write_safetensors(tensors, tmp_path / "m.safetensors", {})
    written = open_checkpoint(path)
    assert all(torch.equal(written.read(name), tensor) for name, tensor in tensors.items())


def test_every_dtype_and_shape_is_read_back_by_the_format_s_own_library(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{dtype}.{shape}": torch.randint(0, 2, shape, generator=generator).to(dtype)
        for dtype in SAFETENSORS_DTYPES.values()
        for shape in ((), (3,), (0, 2), (2, 3, 5))
    }
    ours, theirs = (
        write_safetensors(tensors, tmp_path / "ours.safetensors", {"a": "ü"}),
        tmp_path / "theirs.safetensors",
    )
    save_file(tensors, theirs, {"a": "ü"})
    expected = load_file(theirs)
    for name, tensor in load_file(ours).items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.shape == expected[name].shape
        assert tensor.tolist() == expected[name].tolist()
    with safe_open(ours, framework="pt") as file:
        assert file.metadata() == {"a": "ü"}


def test_a_dtype_that_the_format_does_not_know_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="'w' is torch.complex64"):
        SafetensorsWriter(tmp_path / "m.safetensors", {"w": TensorHeader((1,), torch.complex64)}, {})
