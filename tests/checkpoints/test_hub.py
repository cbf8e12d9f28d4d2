"""A folder laid out like the hub client's cache stands in for the hub."""

import json
import pickle

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from lwptv_lightning import CheckpointError, TaskVectors, open_checkpoint
from lwptv_lightning.checkpoints import fetch, fetch_beside, hub_name
from lwptv_lightning.cli import main
from lwptv_lightning.inspection import SAME_BASE

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


def test_the_caches_own_links_are_followed_and_no_others(repository, tmp_path):
    blobs = repository.parent.parent / "blobs"
    blobs.mkdir()
    save_file(STATE, blobs / "1")
    (blobs / "2").write_text(json.dumps({"weight_map": dict.fromkeys(STATE, "s.safetensors")}))
    (repository / "s.safetensors").symlink_to("../../blobs/1")
    (repository / "model.safetensors.index.json").symlink_to("../../blobs/2")
    for source in ("hf-hub:owner/model", repository):
        assert torch.equal(open_checkpoint(source).read("w"), STATE["w"])
    save_file(STATE, tmp_path / "secret.safetensors")
    (repository / "s.safetensors").unlink()
    (repository / "s.safetensors").symlink_to(tmp_path / "secret.safetensors")
    for source in ("hf-hub:owner/model", repository):
        with pytest.raises(CheckpointError, match=r"'s\.safetensors' is a link that leads outside"):
            open_checkpoint(source)


@pytest.mark.parametrize("weight_map", [{"w": "../../x"}, {"w": "/etc/passwd"}, {"w": 3}, [], None])
def test_nothing_is_fetched_by_a_name_that_leads_outside(weight_map, repository, monkeypatch):
    (repository / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"leads outside of this folder|weight_map must map"):
        fetch("hf-hub:owner/model")


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


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("RepositoryNotFoundError", "no repository 'owner/model' on the hub, or no right to read it"),
        ("RevisionNotFoundError", "'owner/model' has no revision 'v2'"),
    ],
)
def test_what_the_hub_does_not_have_is_named(missing, words, monkeypatch):
    def refuse(*arguments, **options):
        kind = getattr(errors, missing)
        raise kind.__new__(kind)  # its constructor wants a response of the hub's

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(FileNotFoundError, match=f"hf-hub:owner/model@v2: {words}"):
        fetch("hf-hub:owner/model@v2")


def test_the_commands_take_a_name(repository, tmp_path, capsys):
    save_file({name: tensor + 0.01 for name, tensor in STATE.items()}, repository / "model.safetensors")
    save_file(STATE, tmp_path / "base.safetensors")
    arguments = [str(tmp_path / "base.safetensors"), "a=hf-hub:owner/model"]
    main(["check", *arguments])
    assert SAME_BASE in capsys.readouterr().out
    main(["merge", *arguments, "--scale", "1", "--out", str(tmp_path / "merged.safetensors")])
    assert torch.equal(load_file(tmp_path / "merged.safetensors")["w"], STATE["w"] + 0.01)


def test_a_folder_of_the_cache_tells_its_name_and_another_none(repository, tmp_path):
    assert hub_name(repository) == hub_name(repository / "runs") == "owner/model"
    assert hub_name(tmp_path) is None
    assert hub_name(tmp_path / "models--owner" / "snapshots" / COMMIT) is None
    assert hub_name(tmp_path / "models--owner--model" / "blobs") is None


def test_the_card_is_fetched_beside_the_weights(repository, monkeypatch):
    save_file(STATE, repository / "model.safetensors")
    wanted = []
    download = huggingface_hub.hf_hub_download
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda repo, file, **given: wanted.append(file) or download(repo, file, **given),
    )
    fetch("hf-hub:owner/model")
    assert "README.md" in wanted


def test_what_belongs_beside_is_fetched_at_the_revision_that_was_opened(repository, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **options: asked.append((repo, options)))
    assert not fetch_beside(repository, ["vocab*.json"])  # without a network
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *arguments, **options: None)
    assert fetch_beside(repository, ["vocab*.json"])
    assert fetch_beside(repository / "sub", ["vocab*.json"])
    assert asked == [
        ("owner/model", {"revision": COMMIT, "allow_patterns": ["vocab*.json"]}),
        ("owner/model", {"revision": COMMIT, "allow_patterns": ["sub/vocab*.json"]}),
    ]
    assert fetch_beside(tmp_path, ["vocab*.json"])
    assert len(asked) == 2

    def refuse(*arguments, **options):
        raise ConnectionError("no way")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    assert not fetch_beside(repository, ["vocab*.json"])
