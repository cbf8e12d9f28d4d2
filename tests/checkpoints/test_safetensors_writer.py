import errno
import os
import shutil
import time
from collections import namedtuple
from concurrent.futures import wait
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lwptv_lightning import CheckpointError, open_checkpoint
from lwptv_lightning.checkpoints import (
    CHECKSUM_KEYS,
    PAYLOAD_KEY,
    SAFETENSORS_DTYPES,
    SafetensorsWriter,
    TensorHeader,
    payload_problem,
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


@pytest.fixture
def large(monkeypatch):
    """Let any file be as large as those that go to the disk, and are read back, while the rest is made."""
    monkeypatch.setattr(safetensors_writer, "_SYNCED_AT_ONCE", 1)


TENSORS = {"a": torch.arange(6.0), "b": torch.ones(3).bfloat16(), "empty": torch.zeros(0), "c": torch.arange(4)}


@pytest.mark.parametrize("shard_size", [None, 24])
def test_a_large_file_is_as_one_that_is_written_at_once(shard_size, tmp_path, monkeypatch):
    written = {}
    for at_once in (1, 1 << 30):
        monkeypatch.setattr(safetensors_writer, "_SYNCED_AT_ONCE", at_once)
        (folder := tmp_path / f"{at_once}").mkdir()
        with SafetensorsWriter(
            folder / "m.safetensors", TensorHeader.of_all(TENSORS), {"about": "it"}, shard_size
        ) as writer:
            for name in ("c", "b", "a", "empty"):
                for start in range(0, len(TENSORS[name]), 2):
                    writer.write(name, TENSORS[name][start : start + 2], start)
        written[at_once] = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert [payload_problem(path) for path in folder.glob("*.safetensors")] == [None] * (3 if shard_size else 1)
    assert written[1] == written[1 << 30]


def test_a_large_file_is_read_back_and_on_the_disk_while_the_rest_is_made(large, tmp_path, monkeypatch):
    seen = []
    for name in ("payload_checksum", "sync"):
        real = getattr(safetensors_writer, name)
        monkeypatch.setattr(
            safetensors_writer, name, lambda given, name=name, real=real: (seen.append(name), real(given))[1]
        )
    with SafetensorsWriter(tmp_path / "m.safetensors", TensorHeader.of_all(TENSORS), {}) as writer:
        for name, tensor in TENSORS.items():
            writer.write(name, tensor)
        deadline = time.monotonic() + 60
        while not {"payload_checksum", "sync"} <= set(seen) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert seen.count("payload_checksum") == 1
    assert seen.count("payload_checksum") == 1
    assert seen[-1] == "sync"


def test_what_is_written_once_more_counts(large, tmp_path):
    path = tmp_path / "m.safetensors"
    with SafetensorsWriter(path, {"w": TensorHeader((2,), torch.float32)}, {}) as writer:
        writer.write("w", torch.zeros(2))
        writer.write("w", torch.ones(1), 1)
    assert open_checkpoint(path).read("w").tolist() == [0, 1]
    assert payload_problem(path) is None


@pytest.mark.parametrize("more", [1, 0], ids=["at the next piece", "at the end"])
def test_a_disk_that_fails_beside_the_work_is_told_and_nothing_is_left(more, large, tmp_path, monkeypatch):
    told = []

    def sync_once(path):  # the system tells it to the one who asks first, and to no other
        told.append(path)
        if len(told) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write():
        with SafetensorsWriter(tmp_path / "m.safetensors", {"w": TensorHeader((2,), torch.float32)}, {}) as writer:
            writer.write("w", torch.zeros(1))
            wait(writer._shards["0"].syncs)
            if more:
                writer.write("w", torch.zeros(1), 1)
                pytest.fail("it is told at the end alone")

    monkeypatch.setattr(safetensors_writer, "sync", sync_once)
    with pytest.raises(OSError, match=r"m\.safetensors: could not be written \(Input/output error\)"):
        write()
    assert not list(tmp_path.iterdir())


def test_what_a_file_says_of_itself_can_be_said_later(tmp_path):
    path = tmp_path / "m.safetensors"
    tensors = {"w": torch.ones(2)}
    with SafetensorsWriter(path, TensorHeader.of_all(tensors), {"about": "?" * 9, "gone": ""}) as writer:
        with pytest.raises(ValueError, match=r"m\.safetensors: the metadata are longer than those"):
            writer.describe({"about": "!" * 100})
        with pytest.raises(CheckpointError, match="no valid Unicode"):
            writer.describe({"about": "\udc80"})
        writer.describe({"about": 'it "is"'})
        writer.write("w", tensors["w"])
    opened = open_checkpoint(path)
    assert opened.metadata == {"about": 'it "is"'} | dict.fromkeys(CHECKSUM_KEYS, mock.ANY)
    assert opened.read("w").tolist() == [1, 1]
    assert payload_problem(path) is None
