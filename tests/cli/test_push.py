"""A server on this machine stands in for the hub."""

import io
import pickle
import sys

import huggingface_hub.constants
import pytest
import torch
from _helpers.hub import TOKEN, Repository
from huggingface_hub import ModelCard
from safetensors.torch import load, save_file

from lwptv_lightning import TaskVectors, save_merged
from lwptv_lightning.cli import main

OLD = {"model.safetensors": b"old", "model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}"}


@pytest.fixture
def merged(tmp_path):
    base, tasks = {"w": torch.zeros(20), "v": torch.ones(20)}, {"svhn": {"w": torch.ones(20), "v": torch.zeros(20)}}
    save_merged(TaskVectors.open(base, tasks), "ties", tmp_path / "merged" / "model.safetensors")
    return tmp_path / "merged"


def pushed(*arguments):
    main(["push", *map(str, arguments)])


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        pushed(*arguments)
    output = capsys.readouterr()
    text = str(stop.value.code) + output.out + output.err
    assert TOKEN not in text
    assert str(stop.value.code).startswith("lwptv push: ")
    return text


def test_a_folder_goes_to_a_new_repository_with_a_card(hub, merged, capsys):
    (merged / "config.json").write_text('{"architecture": "resnet18", "num_classes": 2}')
    pushed(merged, "owner/model", "--private")
    output = capsys.readouterr().out
    repository = hub.repositories["owner/model"]
    assert repository.private
    files = repository.branches["main"]
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert files["model.safetensors"] == (merged / "model.safetensors").read_bytes()
    assert load(files["model.safetensors"])["w"].shape == (20,)
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "timm"
    assert "merge" in card.data.tags
    assert "To owner/model, which is new and private:" in output
    assert "    model.safetensors  " in output
    assert output.endswith(f"Uploaded to {hub.url}/owner/model\n")
    assert TOKEN not in output
    assert not (merged / "README.md").exists()


def test_with_the_hubs_own_storage_regular_files_go_in_the_commit(hub, merged, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False, raising=False)
    hub.large = ()
    pushed(merged, "owner/model")
    assert not hub.repositories["owner/model"].private
    assert set(hub.repositories["owner/model"].branches["main"]) == {".gitattributes", "README.md", "model.safetensors"}


def test_nothing_but_the_model_leaves_the_folder(hub, merged, tmp_path, capsys):
    (tmp_path / "id_rsa").write_text("secret")
    for name in (".env", "token", "notes.txt", "train.py", "optimizer.safetensors", "config.json.bak"):
        (merged / name).write_text("secret")
    torch.save({"state": 1}, merged / "optimizer.pt")
    (merged / "training_args.bin").write_bytes(pickle.dumps({"a": 1}))
    (merged / "tokenizer.model").write_bytes(pickle.dumps({"a": 1}))  # by its name it belongs to the model
    torch.save({"state": 1}, merged / "vocab.json")
    (merged / "LICENSE").symlink_to(tmp_path / "id_rsa")
    (merged / "sub").mkdir()
    (merged / "sub" / "config.json").write_text("secret")
    (merged / "merges.txt").mkdir()
    (merged / "recipe.json").write_text("{}")
    save_file({"w": torch.ones(2)}, merged / "heads.safetensors")
    save_file({"w": torch.ones(2)}, merged / "checkpoint.safetensors")
    pushed(merged / "model.safetensors", "owner/alone")
    assert set(hub.repositories["owner/alone"].branches["main"]) == {".gitattributes", "README.md", "model.safetensors"}
    (merged / "checkpoint.safetensors").unlink()
    (merged / "optimizer.safetensors").unlink()
    pushed(merged, "owner/model")
    sent = hub.repositories["owner/model"].branches["main"]
    expected = {".gitattributes", "README.md", "model.safetensors", "heads.safetensors", "recipe.json"}
    assert set(sent) == expected
    assert not any(b"secret" in content for content in sent.values())
    assert "Left out: .env, LICENSE, config.json.bak, " in capsys.readouterr().out


def test_all_shards_go_with_their_index(hub, tmp_path):
    base, tasks = {"w": torch.zeros(200), "v": torch.ones(200)}, {"a": {"w": torch.ones(200), "v": torch.ones(200)}}
    save_merged(TaskVectors.open(base, tasks), "ties", tmp_path / "model.safetensors", max_shard_size=1000)
    for source in (tmp_path, tmp_path / "model.safetensors", tmp_path / "model.safetensors.index.json"):
        pushed(source, "owner/model", "--overwrite")
        assert {*hub.repositories["owner/model"].branches["main"]} == {
            ".gitattributes",
            "README.md",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        }


def test_a_card_beside_a_folder_stays_and_a_page_beside_a_file_does_not(hub, merged):
    (merged / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    pushed(merged, "owner/model")
    assert hub.repositories["owner/model"].branches["main"]["README.md"] == (merged / "README.md").read_bytes()
    pushed(merged / "model.safetensors", "owner/other")
    assert b"lwptv-lightning" in hub.repositories["owner/other"].branches["main"]["README.md"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_model_that_is_there_is_replaced_only_by_consent(hub, merged, capsys, monkeypatch):
    before = {"README.md": b"", "picture.jpg": b"", "sub/model.safetensors": b"", **OLD}
    repository = hub.repositories["owner/model"] = Repository(branches={"main": dict(before)})
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # no terminal
    assert "owner/model has a model already (model.safetensors, " in refused(capsys, merged, "owner/model")
    for answer in ("n\n", "\n", "", "ye\n"):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        assert "nothing was uploaded" in refused(capsys, merged, "owner/model")
    assert repository.branches["main"] == before
    assert not [request for request in hub.requests if not request.startswith("GET")]
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    pushed(merged, "owner/model")
    output = capsys.readouterr().out
    removed = "Removed there, as it is another model's: model-00001-of-00002.safetensors, model.safetensors.index.json"
    assert f"Replaced there: README.md, model.safetensors\n{removed}\n" in output
    files = repository.branches["main"]
    assert set(files) == {"README.md", "picture.jpg", "sub/model.safetensors", "model.safetensors"}
    assert files["model.safetensors"] == (merged / "model.safetensors").read_bytes()


@pytest.mark.parametrize("option", ["--overwrite", "--yes"])
def test_no_question_is_asked_where_it_is_answered(option, hub, merged, monkeypatch):
    hub.repositories["owner/model"] = Repository(branches={"main": dict(OLD)})
    monkeypatch.setattr(sys, "stdin", None)
    pushed(merged, "owner/model", option)
    assert set(hub.repositories["owner/model"].branches["main"]) == {"README.md", "model.safetensors"}


def test_a_repository_without_a_model_needs_no_consent(hub, merged):
    hub.repositories["owner/model"] = Repository()
    pushed(merged, "owner/model")
    assert "model.safetensors" in hub.repositories["owner/model"].branches["main"]


def test_a_branch_is_made_and_the_main_one_stays(hub, merged, capsys):
    repository = hub.repositories["owner/model"] = Repository(branches={"main": dict(OLD)})
    pushed(merged, "owner/model", "--revision", "pruned")
    assert repository.branches["main"] == OLD
    assert set(repository.branches["pruned"]) == {"README.md", "model.safetensors"}
    assert capsys.readouterr().out.endswith(f"Uploaded to {hub.url}/owner/model/tree/pruned\n")
    assert "has a model already" in refused(capsys, merged, "owner/model", "--revision", "pruned")


def test_a_branch_of_a_new_repository_is_made(hub, merged):
    pushed(merged, "owner/model", "--revision", "v1")
    assert "model.safetensors" in hub.repositories["owner/model"].branches["v1"]
    assert "model.safetensors" not in hub.repositories["owner/model"].branches["main"]


def test_another_commit_meanwhile_is_not_overwritten(hub, merged, capsys):
    repository = hub.repositories["owner/model"] = Repository(branches={"main": dict(OLD)})

    def intrude(repository):
        repository.commits += 1

    hub.during = intrude
    assert "was changed by somebody else meanwhile" in refused(capsys, merged, "owner/model", "--overwrite")
    assert repository.branches["main"] == OLD


@pytest.mark.parametrize(
    ("repo", "why"),
    [
        ("model", "expected owner/model"),
        ("a/b/c", "is no name on the hub"),
        ("owner/", "is no name on the hub"),
        ("owner/mo del", "is no name on the hub"),
        ("owner/a--b", "is no name on the hub"),
        ("../x", "is no name on the hub"),
        ("", "is no name on the hub"),
    ],
)
def test_a_name_that_is_none_is_refused_before_anything_is_asked(repo, why, hub, merged, capsys):
    assert why in refused(capsys, merged, repo)
    assert not hub.requests


@pytest.mark.parametrize("branch", ["", "../x", "a..b", "a b", "/a", "a/", "-a", "a.lock", "a/.b", "é", "a\n"])
def test_a_branch_that_can_be_none_is_refused_before_anything_is_asked(branch, hub, merged, capsys):
    assert "is no name of a branch" in refused(capsys, merged, "owner/model", f"--revision={branch}")
    assert not hub.requests


def test_without_a_token_nothing_is_asked(hub, merged, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert "there is no token for the hub: log in by `hf auth login`" in refused(capsys, merged, "owner/model")
    assert not hub.requests


def test_what_is_no_merged_model_is_refused_before_anything_is_asked(hub, tmp_path, capsys):
    save_file({"w": torch.ones(2)}, tmp_path / "plain.safetensors")
    assert "expected a merged model, not what lwptv did not write" in refused(capsys, tmp_path, "owner/model")
    save_file({"w": torch.ones(2)}, tmp_path / "plain.safetensors", {"lwptv_kind": "task_vector", "lwptv_task": "a"})
    assert "expected a merged model, not a task vector" in refused(capsys, tmp_path, "owner/model")
    save_file({"w": torch.ones(2)}, tmp_path / "plain.safetensors", {"lwptv_kind": "merged"})
    assert "it has no checksum" in refused(capsys, tmp_path, "owner/model")
    torch.save({"w": torch.ones(2)}, tmp_path / "plain.pt")
    assert "expected a .safetensors file" in refused(capsys, tmp_path / "plain.pt", "owner/model")
    assert "there is no checkpoint" in refused(capsys, tmp_path / "none", "owner/model")
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(b"")
    assert "holds pickles, which are not uploaded" in refused(capsys, tmp_path / "dcp", "owner/model")
    assert not hub.requests


def test_a_damaged_model_is_refused_before_anything_is_asked(hub, merged, capsys):
    content = bytearray((merged / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (merged / "model.safetensors").write_bytes(content)
    assert "it is not as it was written, and is not uploaded" in refused(capsys, merged, "owner/model")
    assert not hub.requests


@pytest.mark.parametrize(
    ("part", "status", "words"),
    [
        ("GET /api/models", 401, "the hub does not accept the token"),
        ("GET /api/models", 403, "the token has no right to write there"),
        ("POST /api/repos/create", 403, "the token has no right to write there"),
        ("POST /api/repos/create", 409, "was changed by somebody else meanwhile"),
        ("/commit/", 400, "the hub refused it (status 400)"),
        ("/commit/", 413, "the hub finds a file too large"),
        ("GET /api/models", 500, "the hub has a fault of its own (status 500)"),
        ("PUT /lfs", 403, "the token has no right to write there"),
    ],
)
def test_what_the_hub_refuses_is_told_in_a_line(part, status, words, hub, merged, capsys, monkeypatch):
    hub.faults[part] = status
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    told = refused(capsys, merged, "owner/model")
    assert words in told
    assert "Traceback" not in told


def test_a_hub_that_is_not_there_is_told_in_a_line(merged, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "the hub could not be asked: " in refused(capsys, merged, "owner/model")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(capsys, merged, "owner/model")


def test_a_public_repository_is_not_taken_for_a_private_one(hub, merged, capsys):
    hub.repositories["owner/model"] = Repository()
    assert "exists and is public" in refused(capsys, merged, "owner/model", "--private")


def test_no_traceback_shows_the_token(hub, merged, capsys):
    hub.faults["/commit/"] = 400
    assert "a fault" in refused(capsys, merged, "owner/model", "--debug")
