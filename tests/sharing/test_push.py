"""The whole way, over a server that stands in for the hub, is in tests/cli/test_push.py."""

import huggingface_hub
import pytest
import torch
from _helpers.hub import TOKEN, Repository, serving

from lwptv_lightning import TaskVectors, save_merged
from lwptv_lightning.sharing import HubError, Push


@pytest.fixture
def merged(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True, raising=False)
    vectors = TaskVectors.open({"w": torch.zeros(20)}, {"a": {"w": torch.ones(20)}})
    return save_merged(vectors, "ties", tmp_path / "model.safetensors")


def test_a_push_that_is_prepared_has_changed_nothing(merged):
    with serving() as hub:
        hub.repositories["owner/model"] = Repository(branches={"main": {"pytorch_model.bin": b"", "a.md": b""}})
        push = Push.prepare(merged, "hf-hub:owner/model", endpoint=hub.url)
        assert push.overwrites
        assert push.removed == ("pytorch_model.bin",)
        assert hub.requests == ["GET /api/models/owner/model"]
        assert TOKEN not in repr(push)
        assert push.run("Mine") == push.url == f"{hub.url}/owner/model"
        assert set(hub.repositories["owner/model"].branches["main"]) == {"a.md", "README.md", "model.safetensors"}


def test_names_like_patterns_remove_no_others(merged):
    with serving() as hub:
        files = {"[ab].bin": b"", "a.bin.txt": b"", "a.md": b""}
        hub.repositories["owner/model"] = Repository(branches={"main": dict(files)})
        push = Push.prepare(merged, "owner/model", endpoint=hub.url)
        push.run()
        left = set(hub.repositories["owner/model"].branches["main"])
        assert left == {"a.bin.txt", "a.md", "README.md", "model.safetensors"}


def test_a_token_in_an_error_is_not_told(merged, monkeypatch):
    def fail(self, *_, **__):
        raise ValueError(f"Illegal header value b'Bearer {TOKEN}'")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(HubError, match="Illegal header value") as caught:
        Push.prepare(merged, "owner/model")
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
