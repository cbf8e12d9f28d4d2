import json
import os

import pytest
import torch
from safetensors.torch import save_file

from lwptv_lightning import CheckpointError, TaskVectors, save_adapter, save_merged
from lwptv_lightning.sharing import Parcel


@pytest.fixture
def merged(tmp_path):
    vectors = TaskVectors.open({"w": torch.zeros(20)}, {"a": {"w": torch.ones(20)}})
    return save_merged(vectors, "ties", tmp_path / "my model" / "model.safetensors").parent


def test_what_belongs_to_a_model_goes_and_all_else_stays(merged):
    own = (
        "config.json",
        "tokenizer.json",
        "preprocessor_config.json",
        "merges.txt",
        "LICENSE",
        "model.heads.safetensors",
    )
    others = (
        ".env",
        ".netrc",
        "optimizer.bin",
        "scheduler.pt",
        "rng_state.pth",
        "run.py",
        "config.yaml",
        "x.safetensors",
    )
    for name in own:
        (merged / name).write_text("{}")
    for name in others[:-1]:
        (merged / name).write_text("{}")
    save_file({"w": torch.ones(1)}, merged / others[-1])
    parcel = Parcel.of(merged)
    assert set(parcel.names) == {"README.md", "model.safetensors", *own}
    assert set(parcel.left_out) == set(others)
    assert parcel.card.partition("\n# ")[2].startswith("my model\n")


def test_the_stage_holds_the_files_and_goes_afterwards(merged):
    parcel = Parcel.of(merged)
    with parcel.staged() as stage:
        assert {each.name for each in stage.iterdir()} == set(parcel.names)
        assert (stage / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()
        assert (stage / "README.md").stat().st_size == parcel.size_of("README.md")
    assert not stage.exists()
    assert (merged / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["link", "FIFO", "folder", "pickle", "archive"])
def test_what_is_no_plain_file_of_the_folder_stays(kind, merged, tmp_path):
    path = merged / "vocab.json"
    if kind == "link":
        (tmp_path / "secret").write_text("{}")
        path.symlink_to(tmp_path / "secret")
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"\x80\x04." if kind == "pickle" else b"PK\x03\x04")
    assert Parcel.of(merged).left_out == ("vocab.json",)


def test_a_card_that_leads_elsewhere_is_not_read(merged, tmp_path):
    (tmp_path / "secret").write_text("---\ntags: [merge, lwptv-lightning]\n---\nsecret")
    (merged / "README.md").symlink_to(tmp_path / "secret")
    assert "secret" not in Parcel.of(merged).card


def test_another_model_beside_it_makes_the_folder_ambiguous(merged):
    save_merged(
        TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}}), "ties", merged / "other.safetensors"
    )
    assert Parcel.of(merged / "other.safetensors").names == ("README.md", "other.safetensors")
    (merged / "model.safetensors").rename(merged / "first.safetensors")
    with pytest.raises(CheckpointError, match="several checkpoints"):
        Parcel.of(merged)


def adapter_of(tmp_path, base):
    weights = {"fc.weight": torch.zeros(8, 8), "fc.bias": torch.zeros(8)}
    expert = {"fc.weight": torch.ones(8, 8), "fc.bias": torch.ones(8)}
    save_adapter(TaskVectors.open(weights, {"a": expert}), "task_arithmetic", tmp_path / "adapter", 2)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
    return path.parent


@pytest.mark.parametrize("base", [None, "owner/model", "gpt2"])
def test_an_adapter_goes_with_its_configuration(base, tmp_path):
    parcel = Parcel.of(adapter_of(tmp_path, base))
    expected = {"README.md", "adapter_model.safetensors", "adapter_config.json", "lwptv_adapter.json"}
    assert set(parcel.names) == expected
    assert "library_name: peft" in parcel.card
    assert "base_model_relation: adapter" in parcel.card


@pytest.mark.parametrize("base", ["/home/me/base", "./base", "../base", "a/b/c", "C:\\base", "~/base", "base/"])
def test_an_adapter_that_names_a_path_of_this_machine_is_refused(base, tmp_path):
    with pytest.raises(CheckpointError, match="a path of this machine; write the base's name on the hub there"):
        Parcel.of(adapter_of(tmp_path, base))


def test_an_adapter_alone_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="name the folder"):
        Parcel.of(adapter_of(tmp_path, None) / "adapter_model.safetensors")
