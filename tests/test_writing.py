import pytest
import torch
from safetensors import safe_open

from lwptv_lightning import MergeRecipe, TaskVectors, merge, open_checkpoint, save_merged, writing
from lwptv_lightning.writing import write_safetensors


def test_file_holds_the_merged_tensors_and_the_recipe(vectors, tmp_path):
    recipe = MergeRecipe("ties", ratio=0.5, keep=("head",))
    path = save_merged(vectors, recipe, tmp_path / "new" / "merged.safetensors")
    written, merged = open_checkpoint(path), merge(vectors, recipe)
    assert set(written.names) == set(merged)
    assert all(torch.equal(written.read(name), tensor) for name, tensor in merged.items())
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert MergeRecipe.from_json(metadata["lwptv_recipe"]) == recipe
    assert metadata["lwptv_tasks"] == "a,b,c"
    assert metadata["format"] == "pt"


def test_another_suffix_is_refused_before_anything_is_merged(counting_checkpoint, base_state, task_states, tmp_path):
    task, reads = counting_checkpoint(task_states["a"])
    vectors = TaskVectors.open(base_state, {"a": task})
    reads.clear()
    with pytest.raises(ValueError, match=r"must end in \.safetensors, not .*merged\.pt"):
        save_merged(vectors, MergeRecipe(), tmp_path / "merged.pt")
    assert not reads
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failing_save_leaves_the_old_file_and_no_other(error, vectors, tmp_path, monkeypatch):
    path = tmp_path / "merged.safetensors"
    path.write_bytes(b"old")

    def fail_halfway(tensors, filename, metadata):
        filename.write_bytes(b"half")
        assert path.read_bytes() == b"old"
        raise error

    monkeypatch.setattr(writing, "save_file", fail_halfway)
    with pytest.raises(error):
        save_merged(vectors, MergeRecipe(), path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


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
