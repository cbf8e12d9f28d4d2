"""Each file operation of what writes is let fail, or is interrupted: all of the old is there, or all of the new."""

import gc
import os
import shutil
from itertools import product

import pytest
import torch
from _helpers.faults import MODES, Faults
from _helpers.written_models import FILES, values_in, write_model

from lwptv_lightning import MergeRecipe
from lwptv_lightning.checkpoints import safetensors_writer, write_safetensors
from lwptv_lightning.files import locks
from lwptv_lightning.report import RECIPE, REPORT, RESULTS, ReportFolder, ResultRow, plot_id_ood

FIRST, SECOND, THIRD = 1.0, 2.0, 3.0
TRANSITIONS = [(before, after) for before in (None, "single", "sharded") for after in ("single", "sharded")]
TRANSITIONS += [("sharded", "more shards"), ("more shards", "sharded")]


@pytest.fixture(autouse=True)
def _collected():
    """What an interruption left open is collected here, where warnings of it are ignored, and not in a later test."""
    yield
    gc.collect()


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
                write_model(path, FIRST, before)
            faults, raised = Faults(folder, number, mode), False
            with faults.injected():
                try:
                    write_model(path, SECOND, after)
                except (OSError, KeyboardInterrupt):
                    raised = True
            if faults.struck is None:
                shutil.rmtree(folder)
                break
            tried, number, case = tried + 1, number + step, (*case, faults.struck)
            ways = values_in(folder)
            assert set(ways) <= {FIRST if before else None, SECOND, None}, (case, ways)
            assert ways[2] is not None or not before, (case, ways)
            assert raised or ways[2] == SECOND, (case, ways)
            assert not stages(folder) or faults.struck in REMOVALS or faults.after, case
            write_model(path, THIRD, after)
            assert values_in(folder)[2] == THIRD, case
            assert len(list(folder.iterdir())) == FILES[after], case
            shutil.rmtree(folder)
    return tried


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of files whose closing failed
def test_a_merge_with_a_fault_leaves_all_of_the_old_model_or_all_of_the_new(amount, tmp_path, row, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 2)  # no lock outlives the run that was interrupted
    monkeypatch.setattr(os, "fsync", lambda _: None)  # which takes long, and shows only where the power fails
    tried, usual = 0, safetensors_writer._SYNCED_AT_ONCE
    for number, (before, after) in enumerate(TRANSITIONS):
        # Written by one thread, and as a large model is, beside which others bring it to the disk and read it back.
        for at_once in amount([(usual, 1)[number % 2]], [usual, 1]):
            monkeypatch.setattr(safetensors_writer, "_SYNCED_AT_ONCE", at_once)
            tried += faulty_merges(before, after, amount(61, 1), tmp_path / f"{number}.{at_once}")
    assert tried > amount(20, 1338)
    row(
        f"{tried:,} faults and interruptions, one at each file operation of single, sharded and overwriting merges",
        "all of the old model or all of the new one, or none where none was; temporary files removed",
    )


NAMES = (REPORT, RESULTS, RECIPE, "merged.safetensors")


def report(folder, value):
    """Write a report's files, each of which tells of a value; return what each then holds."""
    files = ReportFolder(folder, "# Title", NAMES)
    files.require_own()
    with files.writing() as made:
        (made / REPORT).write_text(f"# Title\n{value}" * 50)
        (made / RESULTS).write_text(f"model,{value}\n" * 50)
        (made / RECIPE).write_text(MergeRecipe(scale=value).to_json())
        write_safetensors({"w": torch.full((5,), value)}, made / "merged.safetensors", {"lwptv_kind": "merged"})
    return contents(folder)


def picture(folder, value):
    plot_id_ood([ResultRow("a", {"id/avg": value, "ood/avg": 0.5})], folder / "a.png")
    return contents(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".lock"}


def faulty_reports(write, step, root, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 2)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    (root / "first").mkdir(parents=True)
    first, second = write(root / "first", 0.25), write(root / "first", 0.75)
    tried = 0
    for (start, mode), before in product(enumerate(MODES), (True, False)):
        number = start % step
        while True:
            folder = root / f"{tried}{before}"
            folder.mkdir()
            if before:
                write(folder, 0.25)
            faults, raised = Faults(folder, number, mode), False
            with faults.injected():
                try:
                    write(folder, 0.75)
                except (OSError, KeyboardInterrupt):
                    raised = True
            if faults.struck is None:
                shutil.rmtree(folder)
                break
            tried, number, case = tried + 1, number + step, (before, mode, number, faults.struck)
            for name, content in contents(folder).items():
                assert content in (first[name] if before else None, second[name]), (case, name)
            assert contents(folder).keys() == first.keys() or not before, case
            assert raised or contents(folder) == second, case
            write(folder, 0.75)
            assert contents(folder) == second, case
            assert stages(folder) == [], case
            shutil.rmtree(folder)
    return tried


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of files whose closing failed
def test_reports_and_pictures_with_a_fault_have_each_file_whole_or_absent(amount, tmp_path, row, monkeypatch):
    tried = sum(
        faulty_reports(write, amount(37, 1), tmp_path / write.__name__, monkeypatch) for write in (report, picture)
    )
    assert tried > amount(8, 400)
    row(
        f"{tried:,} faults and interruptions, one at each file operation of reports and pictures",
        "each file whole or absent, or as it was",
    )
