import json
import os
import pickle

import pytest
import torch
from _helpers.checkpoint_files import write_safetensors as write_state
from _helpers.checkpoint_files import write_sharded
from _helpers.states import assert_same_bits
from safetensors.torch import save_file

from lwptv_lightning import CheckpointError, open_checkpoint
from lwptv_lightning.checkpoints import SAFETENSORS_DTYPES


def test_opening_safetensors_reads_no_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr("lwptv_lightning.checkpoints.safetensors.map_bytes", lambda file: pytest.fail("mapped"))
    checkpoint = open_checkpoint(write_state(tmp_path))
    assert checkpoint.headers["w"].shape == (2, 3)
    with pytest.raises(pytest.fail.Exception, match="mapped"):
        checkpoint.read("w")


def test_a_tensor_that_was_read_is_read_again_only_from_the_same_file(tmp_path):
    path = write_state(tmp_path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.read("w") is checkpoint.read("w")
    assert torch.equal(pickle.loads(pickle.dumps(checkpoint)).read("w"), checkpoint.read("w"))
    os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match="changed while it was in use: it was written to"):
        checkpoint.read("w")


def test_a_copy_of_a_tensor_that_stands_askew_is_not_held(tmp_path):
    entries = {"byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    entries["w"] = {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}
    text = json.dumps(entries).encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(1) + bytes(8))
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert checkpoint.read("w").tolist() == [0, 0]
    assert (8 + len(text) + 1) % 4, "it does not stand askew"
    assert checkpoint.read("w") is not checkpoint.read("w")


@pytest.mark.parametrize("kind", [*SAFETENSORS_DTYPES.values()])
def test_each_dtype_is_read_as_the_library_writes_it(kind, tmp_path):
    numbers = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    state = {"w": (numbers + 1j if kind.is_complex else numbers).to(kind), "empty": torch.empty(0, 2, dtype=kind)}
    save_file(state, tmp_path / "m.safetensors")
    found = open_checkpoint(tmp_path / "m.safetensors")
    assert_same_bits({name: found.read(name) for name in found.names}, state)


@pytest.mark.parametrize("code", ["F4", "F6_E2M3"])
def test_packed_numbers_are_refused(code, tmp_path):
    entry = {"w": {"dtype": code, "shape": [4, 8], "data_offsets": [0, 32 * (4 if code == "F4" else 6) // 8]}}
    text = json.dumps(entry).encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))
    if code == "F4":
        save_file({"w": torch.empty(4, 4, dtype=torch.float4_e2m1fn_x2)}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=rf"'w' has the unsupported dtype {code}, packed numbers; dequantize it"):
        open_checkpoint(tmp_path / "m.safetensors")


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


def write_index(folder, weight_map):
    path = folder / "m.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


def test_a_tensor_is_read_from_the_shard_that_the_index_names(tmp_path):
    save_file({"w": torch.ones(2), "v": torch.zeros(1)}, tmp_path / "s1.safetensors")
    save_file({"w": torch.full((3,), 2.0), "u": torch.zeros(1)}, tmp_path / "s2.safetensors")
    rest = {"v": "s1.safetensors", "u": "s2.safetensors"}
    for shard, expected in (("s1.safetensors", [1, 1]), ("s2.safetensors", [2, 2, 2])):
        for order in ((*rest, "w"), ("w", *reversed(rest))):
            weight_map = {name: (rest | {"w": shard})[name] for name in order}
            checkpoint = open_checkpoint(write_index(tmp_path, weight_map))
            assert checkpoint.read("w").tolist() == expected
            assert checkpoint.headers["w"].shape == (len(expected),)


def test_a_tensor_that_only_another_shard_has(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "s1.safetensors")
    save_file({"v": torch.ones(2)}, tmp_path / "s2.safetensors")
    with pytest.raises(CheckpointError, match=r"index and shards disagree on v, w\."):
        open_checkpoint(write_index(tmp_path, {"w": "s2.safetensors", "v": "s1.safetensors"}))


def test_a_tensor_that_the_index_does_not_name(tmp_path):
    save_file({"w": torch.ones(2), "v": torch.ones(2)}, tmp_path / "s1.safetensors")
    with pytest.raises(CheckpointError, match=r"index and shards disagree on v\."):
        open_checkpoint(write_index(tmp_path, {"w": "s1.safetensors"}))


@pytest.mark.parametrize("shard", ["../secret.safetensors", "{}/secret.safetensors", "C:\\x.safetensors", "a\0b", ""])
def test_an_index_that_leads_outside_of_its_folder(shard, tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "secret.safetensors")
    (tmp_path / "model").mkdir()
    path = write_index(tmp_path / "model", {"w": shard.format(tmp_path)})
    with pytest.raises(CheckpointError, match=r"leads outside of this folder|names no file"):
        open_checkpoint(path)


def test_a_shard_that_is_a_link(tmp_path):
    (tmp_path / "model").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "secret.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "model" / "real.safetensors")
    path = write_index(tmp_path / "model", {"w": "link.safetensors"})
    link = tmp_path / "model" / "link.safetensors"
    link.symlink_to("real.safetensors")
    assert open_checkpoint(path).read("w").tolist() == [1, 1]
    link.unlink()
    link.symlink_to("../secret.safetensors")
    with pytest.raises(CheckpointError, match=r"'link\.safetensors' is a link that leads outside of this folder"):
        open_checkpoint(path)
    (tmp_path / "own.safetensors").symlink_to("secret.safetensors")  # the user's own, given by its name
    assert open_checkpoint(tmp_path / "own.safetensors").read("w").tolist() == [1, 1]


def test_a_folder_of_links_to_another_models_files(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "links").mkdir()
    for shard in ("s1", "s2"):
        save_file({shard: torch.ones(2)}, tmp_path / "model" / shard)
    save_file({"s2": torch.zeros(2)}, tmp_path / "secret")
    write_index(tmp_path / "model", {"s1": "s1", "s2": "s2"})
    for file in (tmp_path / "model").iterdir():
        (tmp_path / "links" / file.name).symlink_to(file)
    index = tmp_path / "links" / "m.index.json"
    assert open_checkpoint(index).read("s2").tolist() == [1, 1]
    (tmp_path / "links" / "s2").unlink()
    (tmp_path / "links" / "s2").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"'s2' is a link that leads outside of this folder"):
        open_checkpoint(index)


@pytest.mark.parametrize("odd", ["index", "shard", "file"])
def test_what_is_no_regular_file_is_refused(odd, tmp_path):
    path = tmp_path / "m.index.json"
    if odd == "index":
        os.mkfifo(path)
    elif odd == "shard":
        os.mkfifo(tmp_path / "s.safetensors")
        write_index(tmp_path, {"w": "s.safetensors"})
    else:
        path = tmp_path / "m.safetensors"
        path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="expected a regular file, not a"):
        open_checkpoint(path)


ENTRY = b'"w":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}'


def header(text, data=b""):
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 8,
        (1 << 40).to_bytes(8, "little") + b"{}",
        header(b"[" * 100_000),
        header(b"{%s}" % (ENTRY % (b"9" * 5000)), bytes(4)),
        header(b"{%s,%s}" % (ENTRY % b"1", ENTRY % b"1"), bytes(4)),
        header(b"{%s}" % (ENTRY % (b"1," * 100 + b"1")), bytes(4)),
        header(b"{%s}" % (ENTRY % b"-1"), bytes(4)),
        header(b'{"w":3}'),
        header(b"[]"),
    ],
)
def test_a_header_that_is_none(raw, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"m\.safetensors: "):
        open_checkpoint(tmp_path / "m.safetensors")


@pytest.mark.parametrize("text", ["{", "{}", "[]", "[" * 100_000, '{"weight_map": {"w": "a"}, "weight_map": {}}'])
def test_index_that_is_none(text, tmp_path):
    (tmp_path / "m.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="not an index of sharded safetensors"):
        open_checkpoint(tmp_path / "m.index.json")


@pytest.mark.parametrize("shard", ["x" * 5000, "\0", "\ud800", "", ".", "../w.safetensors"])
def test_index_whose_shards_have_no_names_of_files(shard, tmp_path):
    (tmp_path / "m.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(CheckpointError, match=tmp_path.name):
        open_checkpoint(tmp_path / "m.index.json")
