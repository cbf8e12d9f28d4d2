import os

import pytest
import timm
import torch
from _helpers.library_folders import tuned, vectors_of
from safetensors.torch import save_file

from lwptv_lightning import MergeRecipe, TaskVectors, open_checkpoint, save_merged
from lwptv_lightning.checkpoints import Provenance, SafetensorsWriter
from lwptv_lightning.merging import base_classifier, plan_output, require_output
from lwptv_lightning.task_vectors import checkpoints_of

RECIPE = MergeRecipe(scale=0.5)
BASE = {"w": torch.zeros(4), "v": torch.zeros(2)}


@pytest.fixture
def vectors():
    return TaskVectors.open(BASE, {"a": {name: value + 1 for name, value in BASE.items()}})


@pytest.mark.parametrize(
    "name", ["m.pt", "m.pth", "m.bin", "m.ckpt", "m.json", "m.safetensor", "m.Safetensors", "m.safetensros"]
)
def test_an_ending_of_another_format_is_no_folders(name, vectors, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save_merged(vectors, RECIPE, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["out", "vit_tiny.augreg", "v1.0", "a b", "ü"])
def test_any_other_name_is_a_folders(name, vectors, tmp_path):
    out = save_merged(vectors, RECIPE, str(tmp_path / "deep" / name) + os.sep)
    assert out == tmp_path / "deep" / name
    assert open_checkpoint(out).read("w").tolist() == [0.5] * 4
    assert os.listdir(tmp_path / "deep") == [name]


NAMES_OF_NO_FILE = {"": "it is empty", "a\0b": "null", "x" * 5000: "too long"}


@pytest.mark.parametrize(("name", "why"), NAMES_OF_NO_FILE.items(), ids=["empty", "zero", "long"])
def test_a_name_that_no_file_can_have_is_refused(name, why, vectors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"a folder or of a .safetensors file; by the name '.*{why}"):
        save_merged(vectors, "ties", name)


def test_a_folder_that_is_there_stays_unless_it_may_be_replaced(vectors, tmp_path):
    out = save_merged(vectors, RECIPE, tmp_path / "out", max_shard_size=16)
    before = sorted(os.listdir(out))
    assert len(before) == 4
    with pytest.raises(FileExistsError, match=r"out exists; give another path or overwrite=True"):
        save_merged(vectors, RECIPE, out, overwrite=False)
    assert sorted(os.listdir(out)) == before
    save_merged(vectors, RECIPE, out)
    assert sorted(os.listdir(out)) == ["README.md", "model.safetensors"]
    (out / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match=r"holds 'thesis\.txt'"):
        save_merged(vectors, RECIPE, out)


def test_a_folder_that_is_read_is_not_replaced(tmp_path):
    (tmp_path / "base").mkdir()
    save_file(BASE, tmp_path / "base" / "model.safetensors")
    vectors = TaskVectors.open(tmp_path / "base", {"a": {name: value + 1 for name, value in BASE.items()}})
    with pytest.raises(FileExistsError, match=r"base holds model\.safetensors, which is merged, and would lose it"):
        save_merged(vectors, RECIPE, tmp_path / "base")
    assert os.listdir(tmp_path / "base") == ["model.safetensors"]


@pytest.mark.parametrize("format", ["safetensors", "dcp"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failing_save_leaves_the_old_folder_and_nothing_else(error, format, vectors, tmp_path, monkeypatch):
    out = save_merged(vectors, RECIPE, tmp_path / "out")
    before, write = (out / "model.safetensors").read_bytes(), SafetensorsWriter.write

    def fail_halfway(writer, name, values, start=0):
        write(writer, name, values, start)
        if name == "w":
            raise error

    monkeypatch.setattr(SafetensorsWriter, "write", fail_halfway)
    with pytest.raises(error):
        save_merged(vectors, RECIPE.replace(scale=1.0), out, format=format)
    assert (out / "model.safetensors").read_bytes() == before
    assert os.listdir(tmp_path) == ["out"]


def test_shards_that_a_library_does_not_read_are_refused_when_they_are_asked_for(tmp_path):
    vectors = vectors_of(timm.create_model("resnet10t", num_classes=2), tmp_path / "base")
    with pytest.raises(ValueError, match=r"max_shard_size: timm reads a model from one file, here of [\d,]+ bytes"):
        save_merged(vectors, RECIPE, tmp_path / "out", max_shard_size="1MB")
    assert not (tmp_path / "out").exists()
    assert save_merged(vectors, RECIPE, tmp_path / "out", max_shard_size="1GB").is_dir()


def test_files_are_made_beside_before_the_folder_appears(vectors, tmp_path):
    base, *_ = checkpoints_of(vectors)
    output, seen = plan_output(tmp_path / "out", vectors.headers, base), []

    def card(folder, made):
        seen.append((made.kind, sorted(os.listdir(folder)), (tmp_path / "out").exists()))
        (folder / "README.md").write_text("card")

    with output.writing(Provenance(kind="merged", notes=["replaced"]), [card]) as writer:
        for name, value in BASE.items():
            writer.write(name, value)
    assert seen == [("merged", ["model.safetensors"], False)]
    assert (output.final(writer) / "README.md").read_text() == "card"


def test_the_bases_classifier_is_told_by_the_tasks(tmp_path):
    base, expert = (timm.create_model("resnet10t", num_classes=classes) for classes in (3, 2))
    own = expert.state_dict() | {name: value for name, value in tuned(base, 1).items() if not name.startswith("fc.")}
    vectors = TaskVectors.open(base.state_dict(), {"a": own}, model=base)
    assert base_classifier(vectors) == ("fc.weight", "fc.bias")
    file = save_merged(vectors, RECIPE, tmp_path / "m.safetensors")
    assert not {"fc.weight", "fc.bias"} & set(open_checkpoint(file).names)
    assert Provenance.of(open_checkpoint(file)).left_out == ["fc.weight", "fc.bias"]
    assert not Provenance.of(open_checkpoint(save_merged(vectors, RECIPE, file, keep_classifier=True))).left_out


def test_a_place_is_checked_without_a_model(tmp_path):
    require_output(tmp_path / "out", "timm")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("")
    with pytest.raises(FileExistsError, match="no part of a model"):
        require_output(tmp_path / "out")
