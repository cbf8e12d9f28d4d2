"""Models in several torch files, as transformers wrote them up to its version 4 and zero_to_fp32.py still does."""

import json
import pickle

import pytest
import torch
from _helpers.states import assert_same_bits

from lwptv_lightning import CheckpointError, TaskVectors, open_checkpoint

STATE = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "n": torch.tensor(7),
}
SHARDS = {"pytorch_model-00001-of-00002.bin": ["a"], "pytorch_model-00002-of-00002.bin": ["b", "n"]}


def write(folder, state=STATE, shards=SHARDS, **more):
    """Write the files and the index that ``save_pretrained(safe_serialization=False)`` does."""
    for shard, names in shards.items():
        torch.save({name: state[name] for name in names}, folder / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names} | more
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": weight_map}))
    return index


def test_files_with_an_index_are_read_by_it_or_by_their_folder(tmp_path):
    index = write(tmp_path)
    for source in (index, tmp_path):
        checkpoint = pickle.loads(pickle.dumps(open_checkpoint(source)))
        assert checkpoint.format == "sharded torch"
        assert_same_bits({name: checkpoint.read(name) for name in checkpoint.names}, STATE)


def test_what_the_hubs_client_writes(tmp_path):
    from huggingface_hub import save_torch_state_dict

    state = {f"layer.{i}": torch.randn(16, 16) for i in range(4)}
    save_torch_state_dict(state, tmp_path, max_shard_size="2KB", safe_serialization=False)
    assert (tmp_path / "pytorch_model.bin.index.json").exists()
    checkpoint = open_checkpoint(tmp_path)
    assert_same_bits({name: checkpoint.read(name) for name in checkpoint.names}, state)
    tuned = {name: tensor + 1 for name, tensor in state.items()}
    assert TaskVectors.open(tmp_path, {"a": tuned}).names == tuple(state)


def test_a_tensor_is_read_when_it_is_asked_for(tmp_path):
    checkpoint = open_checkpoint(write(tmp_path))
    first = tmp_path / "pytorch_model-00001-of-00002.bin"
    first.write_bytes(first.read_bytes()[:-1])
    assert torch.equal(checkpoint.read("b"), STATE["b"])
    with pytest.raises(CheckpointError, match=r"00001-of-00002\.bin: changed while it was in use"):
        checkpoint.read("a")
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        checkpoint.require_unchanged()


def test_index_and_files_must_agree(tmp_path):
    index = write(tmp_path, x="pytorch_model-00001-of-00002.bin")
    with pytest.raises(CheckpointError, match=r"index and shards disagree on x\."):
        open_checkpoint(index)
    write(tmp_path, b="pytorch_model-00001-of-00002.bin")
    with pytest.raises(CheckpointError, match=r"index and shards disagree on b\."):
        open_checkpoint(index)
    write(tmp_path, y="pytorch_model-00003-of-00003.bin", z="/etc/passwd")
    with pytest.raises(CheckpointError, match=r"'/etc/passwd' leads outside of this folder"):
        open_checkpoint(index)
    write(tmp_path, y="pytorch_model-00003-of-00003.bin")
    with pytest.raises(CheckpointError, match=r"missing: pytorch_model-00003-of-00003\.bin\."):
        open_checkpoint(index)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="not an index of sharded torch files"):
        open_checkpoint(index)


def test_code_in_a_shard_is_not_run(tmp_path):
    class Call:
        def __reduce__(self):
            return (pytest.fail, ("it ran",))

    index = write(tmp_path)
    torch.save({"a": STATE["a"], "b": Call()}, tmp_path / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(CheckpointError, match=r"00001-of-00002\.bin"):
        open_checkpoint(index)
