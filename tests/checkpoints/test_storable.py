import pytest
import torch

from lwptv_lightning import CheckpointError, MergeRecipe, TaskVectors, save_merged
from lwptv_lightning.checkpoints import SafetensorsWriter, TensorHeader, write_safetensors


def test_a_dtype_that_the_format_does_not_know_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="'w' is torch.complex128"):
        SafetensorsWriter(tmp_path / "m.safetensors", {"w": TensorHeader((1,), torch.complex128)}, {})


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
