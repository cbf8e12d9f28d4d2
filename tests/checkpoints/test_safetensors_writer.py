import errno
import os
import shutil
from collections import namedtuple
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lwptv_lightning import CheckpointError, MergeRecipe, TaskVectors, open_checkpoint, save_merged
from lwptv_lightning.checkpoints import (
    CHECKSUM_KEYS,
    PAYLOAD_KEY,
    SAFETENSORS_DTYPES,
    SafetensorsWriter,
    TensorHeader,
    safetensors_writer,
    write_safetensors,
)


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
        assert file.metadata() == {"a": "ü"} | dict.fromkeys(CHECKSUM_KEYS, mock.ANY)


def test_a_dtype_that_the_format_does_not_know_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="'w' is torch.complex64"):
        SafetensorsWriter(tmp_path / "m.safetensors", {"w": TensorHeader((1,), torch.complex64)}, {})


@pytest.mark.parametrize("name", ["__metadata__", "a\udc80", "\ud800"])
def test_a_name_that_the_format_cannot_hold_is_refused_before_any_work(name, tmp_path, counting_checkpoint):
    state = {"w": torch.zeros(2), name: torch.zeros(2)}
    task, reads = counting_checkpoint({name: tensor + 1 for name, tensor in state.items()})
    vectors = TaskVectors.open(state, {"a": task})
    reads.clear()
    with pytest.raises(CheckpointError, match="cannot be named") as caught:
        save_merged(vectors, MergeRecipe("ties"), tmp_path / "new" / "m.safetensors")
    assert repr(name) in str(caught.value)
    assert not reads
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("metadata", [{"a": "\udc80"}, {"\ud800": "a"}])
def test_metadata_that_the_format_cannot_hold_are_refused(metadata, tmp_path):
    with pytest.raises(CheckpointError, match="the metadata .* no valid Unicode"):
        write_safetensors({"w": torch.zeros(2)}, tmp_path / "m.safetensors", metadata)


def test_names_that_look_like_trouble_are_read_back(tmp_path):
    names = ["", "\0", "\n", '"', "\\", "😀", PAYLOAD_KEY, f'"{PAYLOAD_KEY}": "', "../w"]
    tensors = {name: torch.tensor(number) for number, name in enumerate(names)}
    metadata = {"note": f'"{PAYLOAD_KEY}": "{"0" * 64}"', PAYLOAD_KEY: "another file's"}
    path = write_safetensors(tensors, tmp_path / "m.safetensors", metadata)
    opened = open_checkpoint(path, prefix="")
    assert {name: opened.read(name).item() for name in opened.names} == {name: n for n, name in enumerate(names)}
    assert opened.metadata["note"] == metadata["note"]
    assert len(opened.metadata[PAYLOAD_KEY]) == 64


def test_a_file_that_is_read_otherwise_is_not_reported_as_written(tmp_path, monkeypatch):
    write_safetensors({"w": torch.zeros(2)}, tmp_path / "m.safetensors", {})
    monkeypatch.setattr(safetensors_writer, "payload_checksum", lambda _: '"' * 64)
    with pytest.raises(CheckpointError, match=r"m\.safetensors: what was written cannot be read"):
        write_safetensors({"w": torch.ones(2)}, tmp_path / "m.safetensors", {})
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
    assert not open_checkpoint(tmp_path / "m.safetensors").read("w").any()


def test_a_header_that_readers_refuse_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_writer, "_LONGEST_HEADER", 100)
    with pytest.raises(CheckpointError, match="more than readers of the format take"):
        SafetensorsWriter(tmp_path / "m.safetensors", {"w" * 100: TensorHeader((1,), torch.int8)}, {}).__enter__()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("total", [1000, 0])
def test_a_full_disk_is_told_before_the_work(total, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total free")(total, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    if not total:  # a system that does not say how large it is
        write_safetensors({"w": torch.zeros(2)}, tmp_path / "m.safetensors", {})
        return
    with pytest.raises(OSError, match=r"m\.safetensors needs 8 bytes, and 0 are free") as caught:
        write_safetensors({"w": torch.zeros(2)}, tmp_path / "m.safetensors", {})
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_is_named_and_nothing_is_left():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    # An own file system is root's to mount; a limit on a file's size fails in the same place.
    resource = pytest.importorskip("resource")
    import signal
    import tempfile

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with tempfile.TemporaryDirectory() as folder:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
            with pytest.raises(OSError, match=r"m\.safetensors: could not be written \(File too large\)"):
                write_safetensors({"w": torch.zeros(1 << 20)}, f"{folder}/m.safetensors", {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert os.listdir(folder) == []
