import pytest
import torch
from _helpers.checkpoint_files import STATE
from safetensors.torch import save_file

from lwptv_lightning.checkpoints import CheckpointError, open_checkpoint


def test_folder_of_a_transformers_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=4))
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="4KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for folder in (tmp_path / "one", tmp_path / "many", tmp_path):
        checkpoint = open_checkpoint(folder)
        assert set(checkpoint.names) == set(model.state_dict())
        assert torch.equal(checkpoint.read("post_layernorm.weight"), model.post_layernorm.weight)


def test_folder_without_or_with_several_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        open_checkpoint(tmp_path)
    for name in ("a", "b"):
        save_file(STATE, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"several checkpoints \(a\.safetensors, b\.safetensors\); name one"):
        open_checkpoint(tmp_path)
