import errno
import json
import os
import re
import stat

import pytest
import torch
from safetensors.torch import save_file

from lwptv_lightning import CheckpointError, MergeRecipe, TaskVectors, open_checkpoint, save_merged

OLD, NEW = 1.0, 2.0
SIZES = {"one": "5GB", "two": 40, "four": 20}
TENSORS = 4


def write(path, value, size, **options):
    base = {f"w{number}": torch.zeros(5) for number in range(TENSORS)}
    vectors = TaskVectors.open(base, {"a": {name: tensor + value for name, tensor in base.items()}})
    return save_merged(vectors, MergeRecipe("simple_average"), path, max_shard_size=SIZES[size], **options)


def value_of(source):
    opened = open_checkpoint(source)
    (value,) = {number for name in opened.names for number in opened.read(name).tolist()}
    assert len(opened.names) == TENSORS
    return value


def present(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("after", SIZES)
@pytest.mark.parametrize("before", SIZES)
@pytest.mark.parametrize("without", [(), ("link",), ("flock",), ("link", "flock")], ids=str)
def test_a_model_replaces_another_with_all_of_its_files(without, before, after, tmp_path, monkeypatch):
    for function in without:
        owner = os if function == "link" else pytest.importorskip("fcntl")
        error = OSError(errno.EPERM, "not on this file system")
        monkeypatch.setattr(owner, function, lambda *_, error=error, **__: (_ for _ in ()).throw(error))
    path = tmp_path / "m.safetensors"
    first = write(path, OLD, before)
    for file in tmp_path.iterdir():
        file.chmod(0o600)
    assert value_of(first) == OLD
    second = write(path, NEW, after)
    assert value_of(second) == value_of(tmp_path) == NEW
    assert len(present(tmp_path)) == {"one": 1, "two": 3, "four": 5}[after]
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_a_model_is_not_replaced_unasked(tmp_path):
    for size in SIZES:
        path = tmp_path / size / "m.safetensors"
        write(path, OLD, size, overwrite=False)
        before = present(path.parent)
        for other in SIZES:
            with pytest.raises(FileExistsError, match="exists; give another path or overwrite=True"):
                write(path, NEW, other, overwrite=False)
        assert present(path.parent) == before
        assert value_of(path.parent) == OLD


def test_files_that_others_put_there_stay(tmp_path):
    path = tmp_path / "m.safetensors"
    foreign = ["m-00001-of-00002.safetensors", "m-00009-of-00009.safetensors", "n-00001-of-00002.safetensors", "a.txt"]
    for name in foreign:
        save_file({"w": torch.ones(1)}, tmp_path / name)
    os.mkfifo(tmp_path / "m-00001-of-00003.safetensors")
    foreign.append("m-00001-of-00003.safetensors")
    for size in ("two", "one", "four", "one"):
        write(path, NEW, size)
    assert present(tmp_path) == sorted([*foreign, "m.safetensors"])
    assert value_of(path) == NEW


def test_an_index_is_believed_of_its_own_shards_alone(tmp_path):
    path = tmp_path / "m.safetensors"
    write(path, OLD, "two")
    index = tmp_path / "m.safetensors.index.json"
    precious = tmp_path / "precious.safetensors"
    save_file({"w": torch.ones(1)}, precious)
    outside = tmp_path.parent / "m-00001-of-00001.safetensors"
    save_file({"w": torch.ones(1)}, outside)
    content = json.loads(index.read_text())
    content["weight_map"] |= {"x": precious.name, "y": f"../{outside.name}", "z": str(precious)}
    index.write_text(json.dumps(content))
    write(path, NEW, "one")
    assert present(tmp_path) == [path.name, precious.name]
    outside.unlink()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": [3]}}', "[" * 100_000]
)
@pytest.mark.parametrize("size", ["one", "two"])
def test_a_broken_index_is_replaced(content, size, tmp_path):
    (tmp_path / "m.safetensors.index.json").write_text(content)
    assert value_of(write(tmp_path / "m.safetensors", NEW, size)) == NEW
    assert value_of(tmp_path) == NEW


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.write_text('{"a":' * 100_000)])
def test_what_is_called_an_index_of_another_model_is_left_alone(make, tmp_path):
    path, other = tmp_path / "m.safetensors", tmp_path / "other.safetensors.index.json"
    write(path, OLD, "two")
    make(other)
    write(path, NEW, "one")
    assert present(tmp_path) == [path.name, other.name]


def test_shards_stay_where_the_disk_does_not_say_whether_an_index_names_them(tmp_path, monkeypatch):
    real = os.stat

    def failing(path, *arguments, **options):
        found = real(path, *arguments, **options)
        if str(path).endswith(".index.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", failing)
        write(tmp_path / "m.safetensors", NEW, "two")
    assert value_of(tmp_path) == NEW


def test_shards_of_a_run_that_was_killed_are_no_model_and_go_with_the_next(tmp_path):
    path = tmp_path / "m.safetensors"
    write(path, OLD, "two").unlink()
    for shard in present(tmp_path)[1:]:
        (tmp_path / shard).unlink()
    assert len(present(tmp_path)) == 1
    with pytest.raises(CheckpointError, match="no \\*.safetensors"):
        open_checkpoint(tmp_path)
    write(path, NEW, "two")
    assert len(present(tmp_path)) == 3
    assert value_of(tmp_path) == NEW


def test_a_new_model_has_the_names_of_transformers_and_one_that_replaces_it_others(tmp_path):
    path = tmp_path / "m.safetensors"
    write(path, OLD, "two")
    plain = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]
    assert present(tmp_path) == [*plain, "m.safetensors.index.json"]
    write(path, NEW, "two")
    first, second, _ = present(tmp_path)
    assert re.fullmatch(r"m-00001-of-00002\.[0-9a-f]{8}\.safetensors", first)
    assert second == first.replace("00001", "00002", 1)
