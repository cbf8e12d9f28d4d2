"""Each file operation of what writes is let fail, or is interrupted: all of the old is there, or all of the new."""

import os
import shutil

import pytest
import torch
from _helpers.faults import MODES, Faults

from lwptv_lightning import MergeRecipe, TaskVectors, open_checkpoint, save_merged
from lwptv_lightning.files import locks

SHARDS = {"single": "5GB", "sharded": 40, "more shards": 20}
FIRST, SECOND, THIRD = 1.0, 2.0, 3.0
TRANSITIONS = [(before, after) for before in (None, "single", "sharded") for after in ("single", "sharded")]
TRANSITIONS += [("sharded", "more shards"), ("more shards", "sharded")]
FILES = {"single": 1, "sharded": 3, "more shards": 5}


def merge(path, value, size):
    base = {f"w{number}": torch.zeros(5) for number in range(4)}
    vectors = TaskVectors.open(base, {"a": {name: tensor + value for name, tensor in base.items()}})
    save_merged(vectors, MergeRecipe("simple_average"), path, max_shard_size=SHARDS[size])


def value_of(source):
    """Return the one value of all tensors, None where nothing is there."""
    if not source.exists():
        return None
    opened = open_checkpoint(source)
    assert set(opened.names) == {f"w{number}" for number in range(4)}
    (value,) = {number for name in opened.names for number in opened.read(name).tolist()}
    return value


def found(folder):
    """Return what each way to open a model of a folder gives: the file, the index, the folder."""
    ways = [value_of(folder / name) for name in ("m.safetensors", "m.safetensors.index.json")]
    return [*ways, value_of(folder) if any(ways) else None]


def stages(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


REMOVALS = {"unlink", "rmdir", "scandir", "listdir", "stat", "lstat"}
"""Operations by which temporary files are removed: where one fails, or was done unknown to who did it, some stay."""


def faulty_merges(before, after, step, root):
    """Merge again and again, with the next operation's fault each time, and return how many faults there were."""
    tried = 0
    for first, mode in enumerate(MODES):
        number = first % step
        while True:
            folder = root / f"{tried}"
            folder.mkdir(parents=True)
            path, case = folder / "m.safetensors", (before, after, mode, number)
            if before:
                merge(path, FIRST, before)
            faults, raised = Faults(folder, number, mode), False
            with faults.injected():
                try:
                    merge(path, SECOND, after)
                except (OSError, KeyboardInterrupt):
                    raised = True
            if faults.struck is None:
                shutil.rmtree(folder)
                break
            tried, number, case = tried + 1, number + step, (*case, faults.struck)
            ways = found(folder)
            assert set(ways) <= {FIRST if before else None, SECOND, None}, (case, ways)
            assert ways[2] is not None or not before, (case, ways)
            assert raised or ways[2] == SECOND, (case, ways)
            assert not stages(folder) or faults.struck in REMOVALS or faults.after, case
            merge(path, THIRD, after)
            assert found(folder)[2] == THIRD, case
            assert len(list(folder.iterdir())) == FILES[after], case
            shutil.rmtree(folder)
    return tried


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of files whose closing failed
def test_a_merge_with_a_fault_leaves_all_of_the_old_model_or_all_of_the_new(amount, tmp_path, row, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 2)  # no lock outlives the run that was interrupted
    monkeypatch.setattr(os, "fsync", lambda _: None)  # which takes long, and shows only where the power fails
    tried = sum(
        faulty_merges(before, after, amount(23, 1), tmp_path / f"{number}")
        for number, (before, after) in enumerate(TRANSITIONS)
    )
    assert tried > amount(50, 1338)
    row(
        f"{tried:,} faults and interruptions, one at each file operation of single, sharded and overwriting merges",
        "all of the old model or all of the new one, or none where none was; temporary files removed",
    )
