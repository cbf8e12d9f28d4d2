"""A folder laid out like the hub client's cache stands in for the hub."""

import json
import pickle

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from lwptv_lightning import TaskVectors, open_checkpoint
from lwptv_lightning.hub import fetch

STATE = {"w": torch.arange(4.0), "b": torch.ones(2)}
COMMIT = "a" * 40


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The snapshot folder of ``owner/model`` in an otherwise empty cache, without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    root = tmp_path / "models--owner--model"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    for revision in ("main", "v1"):
        (root / "refs" / revision).write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize("name", ["hf-hub:owner/model", "hf://owner/model", "hf-hub:owner/model@v1"])
def test_weights_are_found_by_the_repositorys_name(name, repository):
    save_file(STATE, repository / "model.safetensors")
    (repository / "config.json").write_text("{}")
    checkpoint = pickle.loads(pickle.dumps(open_checkpoint(name)))
    assert torch.equal(checkpoint.read("w"), STATE["w"])
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    assert TaskVectors.open(name, {"a": other}).stack("w").tolist() == [[1.0] * 4]


def test_a_file_of_the_repository_may_be_named(repository):
    (repository / "runs").mkdir()
    torch.save(STATE, repository / "runs" / "last.pt")
    assert fetch("hf://owner/model@main/runs/last.pt") == repository / "runs" / "last.pt"


def test_all_shards_are_fetched(repository):
    for shard, part in {"1.safetensors": "w", "2.safetensors": "b"}.items():
        save_file({part: STATE[part]}, repository / shard)
    index = {"weight_map": {"w": "1.safetensors", "b": "2.safetensors"}}
    (repository / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(open_checkpoint("hf-hub:owner/model").names) == set(STATE)


@pytest.mark.parametrize("name", ["hf-hub:owner/model", "hf-hub:owner/model/absent.pt", "hf-hub:owner/other"])
def test_what_is_neither_cached_nor_reachable(name, repository):
    with pytest.raises(
        FileNotFoundError, match=rf"{name}: .* found on the hub or, without a network, in the local cache"
    ):
        open_checkpoint(name)


@pytest.mark.parametrize("name", ["hf-hub:model", "hf://", "hf-hub:a b/c"])
def test_a_malformed_name(name):
    with pytest.raises(ValueError, match=r"no name on the hub; expected hf-hub:owner/model\[@revision\]"):
        open_checkpoint(name)
