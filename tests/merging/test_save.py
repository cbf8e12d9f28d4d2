import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lwptv_lightning import MergeRecipe, TaskVectors, merge, open_checkpoint, save_merged
from lwptv_lightning.checkpoints import CheckpointError, Provenance, SafetensorsWriter
from lwptv_lightning.merging import MemoryLimitError


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


def test_inputs_are_hashed_when_the_merge_is_made_and_those_that_changed_until_then_are_refused(
    base_state, task_states, tmp_path, monkeypatch
):
    path, out = tmp_path / "base.safetensors", tmp_path / "m.safetensors"
    save_file(base_state, path)
    done = []
    real, write = TaskVectors.fingerprints, SafetensorsWriter.write

    def hashed(vectors, like=None):
        done.append("hashed")
        found = real(vectors, like)
        if "touch" in done:
            os.utime(path, ns=(1, 1))
        return found

    def written(writer, name, values, start=0):
        done.append("written")
        write(writer, name, values, start)

    monkeypatch.setattr(TaskVectors, "fingerprints", hashed)
    monkeypatch.setattr(SafetensorsWriter, "write", written)
    save_merged(TaskVectors.open(path, task_states), MergeRecipe(), out)
    assert done[-1] == "hashed"
    assert done.count("hashed") == 1
    made, before = Provenance.of(open_checkpoint(out)), out.read_bytes()
    assert (made.base, made.tasks) == real(TaskVectors.open(base_state, task_states))
    done.append("touch")
    with pytest.raises(CheckpointError, match=r"base\.safetensors: changed while it was in use"):
        save_merged(TaskVectors.open(path, task_states), MergeRecipe(), out)
    assert out.read_bytes() == before


def test_another_suffix_is_refused_before_anything_is_merged(counting_checkpoint, base_state, task_states, tmp_path):
    task, reads = counting_checkpoint(task_states["a"])
    vectors = TaskVectors.open(base_state, {"a": task})
    reads.clear()
    with pytest.raises(ValueError, match=r"must end in \.safetensors, not .*merged\.pt"):
        save_merged(vectors, MergeRecipe(), tmp_path / "merged.pt")
    assert not reads
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("shard_size", ["5GB", 64])
def test_a_failing_save_leaves_the_old_file_and_no_other(error, shard_size, vectors, tmp_path, monkeypatch):
    path = tmp_path / "merged.safetensors"
    path.write_bytes(b"old")

    write = SafetensorsWriter.write

    def fail_halfway(writer, name, values, start=0):
        write(writer, name, values, start)
        assert path.read_bytes() == b"old"
        if name == "fc.weight":
            raise error

    monkeypatch.setattr(SafetensorsWriter, "write", fail_halfway)
    with pytest.raises(error):
        save_merged(vectors, MergeRecipe(), path, max_shard_size=shard_size)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


def test_a_large_model_is_written_in_shards_that_transformers_would_name_so(vectors, tmp_path):
    recipe = MergeRecipe("ties", ratio=0.5)
    path = save_merged(vectors, recipe, tmp_path / "model.safetensors", max_shard_size=80)
    files = sorted(file.name for file in tmp_path.iterdir())
    count = len(files) - 1
    assert path.name == "model.safetensors.index.json"
    assert files == [*(f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)), path.name]
    index = json.loads(path.read_text())
    assert index["metadata"]["total_size"] == sum(header.nbytes for header in vectors.headers.values())
    merged = merge(vectors, recipe)
    for opened in (open_checkpoint(path), open_checkpoint(tmp_path)):
        assert all(torch.equal(opened.read(name), tensor) for name, tensor in merged.items())
    for file in files[:-1]:
        shard = load_file(tmp_path / file)
        assert set(shard) == {name for name, home in index["weight_map"].items() if home == file}
        assert sum(tensor.nbytes for tensor in shard.values()) <= 80 or len(shard) == 1


def test_another_number_of_files_replaces_what_was_written_before(vectors, tmp_path):
    path = tmp_path / "model.safetensors"
    assert save_merged(vectors, MergeRecipe(), path, max_shard_size=80) != path
    assert save_merged(vectors, MergeRecipe(scale=1.0), path) == path
    assert open_checkpoint(tmp_path).source == str(path)
    save_merged(vectors, MergeRecipe(), path, max_shard_size=80)
    assert not path.exists()


def test_a_killed_merge_leaves_the_old_file(vectors, tmp_path):
    path = tmp_path / "merged.safetensors"
    save_merged(vectors, MergeRecipe(), path)
    before = path.read_bytes()
    program = f"""
        import os, signal, torch
        from lwptv_lightning import MergeRecipe, TaskVectors, save_merged
        from lwptv_lightning.checkpoints import SafetensorsWriter

        write = SafetensorsWriter.write

        def die_at_the_second_tensor(writer, name, values, start=0):
            if name == "b":
                os.kill(os.getpid(), signal.SIGKILL)
            write(writer, name, values, start)

        SafetensorsWriter.write = die_at_the_second_tensor
        base = {{"a": torch.zeros(3), "b": torch.zeros(3)}}
        tasks = {{"t": {{"a": torch.ones(3), "b": torch.ones(3)}}}}
        save_merged(TaskVectors.open(base, tasks), MergeRecipe(), {str(path)!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert [file for file in tmp_path.glob("*.safetensors*") if not file.name.startswith(".")] == [path]


@pytest.mark.parametrize("option", ["max_memory", "max_shard_size"])
@pytest.mark.parametrize("size", ["many", "-1MB", 0, "3 apples"])
def test_a_size_that_is_none_is_refused(option, size, vectors, tmp_path):
    with pytest.raises(ValueError, match=f"{option} must be a number of bytes"):
        save_merged(vectors, MergeRecipe(), tmp_path / "new" / "m.safetensors", **{option: size})
    assert not list(tmp_path.iterdir())


def test_a_merge_that_does_not_fit_writes_nothing(vectors, tmp_path):
    with pytest.raises(MemoryLimitError, match="max_memory is 1 MB, but merging 3 tasks by 'tsv_m'"):
        save_merged(vectors, MergeRecipe("tsv_m"), tmp_path / "m.safetensors", max_memory="1MB")
    assert not list(tmp_path.iterdir())
