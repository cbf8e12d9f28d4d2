"""The files of a model, and what has become of each."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from lwptv_lightning import MergeRecipe, save_merged
from lwptv_lightning.checkpoints import CheckpointError, write_safetensors
from lwptv_lightning.inspection.files import WrittenModel


def test_one_file(tmp_path):
    path = write_safetensors({"w": torch.ones(2)}, tmp_path / "m.safetensors", {"a": "b"})
    written = WrittenModel.open(path)
    assert written.files == (path,)
    assert not written.damaged
    assert not written.unchecked
    assert written.checkpoint.metadata["a"] == "b"


def test_shards_are_found_by_any_of_their_names(vectors, tmp_path):
    index = save_merged(vectors, MergeRecipe(), tmp_path / "m.safetensors", max_shard_size=100)
    shards = tuple(sorted(tmp_path.glob("m-*.safetensors")))
    assert len(shards) > 1
    for path in (index, tmp_path, tmp_path / "m.safetensors"):
        assert sorted(WrittenModel.open(path).files) == list(shards)


def test_a_shard_of_another_model_and_one_of_changed_bytes_are_told_apart(vectors, tmp_path):
    for name, scale in (("one", 0.3), ("two", 0.4)):
        save_merged(vectors, MergeRecipe(scale=scale), tmp_path / name / "m.safetensors", max_shard_size=100)
    first, second, third = sorted((tmp_path / "one").glob("m-*.safetensors"))[:3]
    shutil.copy(tmp_path / "two" / second.name, second)
    data = bytearray(third.read_bytes())
    data[-1] ^= 1
    third.write_bytes(data)
    damaged = WrittenModel.open(tmp_path / "one").damaged
    assert list(damaged) == [str(second), str(third)]
    assert (
        damaged[str(second)] == f"it is of another model than {first.name}: other metadata, lwptv_recipe, lwptv_scale."
    )
    assert "their SHA-256 is" in damaged[str(third)]


def test_what_has_no_checksum_is_unchecked(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "m.safetensors")
    written = WrittenModel.open(tmp_path / "m.safetensors")
    assert written.unchecked == (str(tmp_path / "m.safetensors"),)
    assert not written.damaged


def test_other_formats_are_refused(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m.pt: expected a \.safetensors file of the library"):
        WrittenModel.open(tmp_path / "m.pt")
