import json

import pytest
from _helpers.checkpoint_files import write_safetensors as write_state
from _helpers.checkpoint_files import write_sharded

from lwptv_lightning import CheckpointError, open_checkpoint


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
