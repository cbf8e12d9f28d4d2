"""The files of a model, and what has become of each."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from lwptv_lightning import MergeRecipe, TaskVectors, save_merged
from lwptv_lightning.checkpoints import CheckpointError, write_safetensors
from lwptv_lightning.inspection import verify
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


def test_a_distributed_checkpoint_is_whole_or_says_what_is_not(tmp_path):
    base = {"w": torch.zeros(64), "v": torch.zeros(2)}
    vectors = TaskVectors.open(base, {"a": {name: value + 1 for name, value in base.items()}})
    out = save_merged(vectors, MergeRecipe(), tmp_path / "out", format="dcp")
    assert not WrittenModel.open(out).damaged
    found = verify(out, base, {"a": {name: value + 1 for name, value in base.items()}})
    assert found.passed
    assert (found.compared, found.files) == (2, 3)
    assert list(verify(out, base, {"a": {name: value + 2 for name, value in base.items()}}).inputs) == ["a"]
    data, said = out / "__0_0.distcp", out / "lwptv.json"
    whole, text = data.read_bytes(), said.read_text()
    data.write_bytes(whole.replace(b"\x9a\x99\x99>", b"\x9a\x99\x99?", 1))
    assert "its SHA-256 is" in WrittenModel.open(out).damaged[str(data)]
    data.write_bytes(whole)
    said.write_text(text.replace("task_arithmetic", "task_arithmetix"))
    assert list(WrittenModel.open(out).damaged) == [str(said)]
    said.write_text("[1]")
    with pytest.raises(CheckpointError, match=r"lwptv\.json: expected texts by their keys"):
        WrittenModel.open(out)
