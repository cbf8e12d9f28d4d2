import os

import pytest
import torch

from lwptv_lightning import MergeRecipe
from lwptv_lightning.checkpoints import write_safetensors
from lwptv_lightning.report import RECIPE, REPORT, RESULTS, ReportFolder, ResultRow, ResultTable

TITLE = "# A report"
NAMES = (REPORT, RESULTS, RECIPE, "id_ood.png", "merged.safetensors")
ROW = ResultRow("base", {"id/avg": 0.5, "ood/avg": 0.25})


def write(folder, note="", **options):
    files = ReportFolder(folder, TITLE, NAMES, **options)
    files.require_own()
    with files.writing() as made:
        (made / REPORT).write_text(f"{TITLE}\n{note}")
        (made / RESULTS).write_text(ResultTable([ROW]).csv())
        (made / RECIPE).write_text(MergeRecipe("ties").to_json())
        (made / "id_ood.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        write_safetensors({"w": torch.ones(2)}, made / "merged.safetensors", {"lwptv_kind": "merged"})
        (made / "scratch").touch()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_earlier_report_is_replaced(tmp_path):
    write(tmp_path / "new", "first")
    write(tmp_path / "new", "second")
    assert sorted(contents(tmp_path / "new")) == sorted(NAMES)
    assert (tmp_path / "new" / REPORT).read_text().endswith("second")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("others", [True, False], ids=["in a report's folder", "by itself"])
@pytest.mark.parametrize("content", ["mine", "# A report on something else", "{}", "[" * 100_000])
def test_what_no_report_wrote_is_not_replaced_unasked(content, others, name, tmp_path):
    if others:
        write(tmp_path)
    (tmp_path / name).write_text(content)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="holds '.*', which no earlier report of this kind wrote") as caught:
        write(tmp_path)
    assert contents(tmp_path) == before
    assert "overwrite=True" in str(caught.value)
    write(tmp_path, overwrite=True)
    assert sorted(contents(tmp_path)) == sorted(NAMES)
    write(tmp_path)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/null", path)])
def test_what_is_no_file_is_never_replaced(make, tmp_path):
    make(tmp_path / RESULTS)
    for overwrite in (False, True):
        with pytest.raises(OSError, match="results.csv"):
            write(tmp_path, overwrite=overwrite)
    assert not (tmp_path / RESULTS).is_file()


def test_other_files_are_no_matter_unless_it_shall_be_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / ".gitignore").write_text("*")
    write(tmp_path)
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        write(tmp_path, alone=True)
    write(tmp_path, alone=True, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    (tmp_path / "thesis.txt").unlink()
    write(tmp_path, alone=True)


def test_a_report_that_fails_leaves_the_earlier_one(tmp_path):
    write(tmp_path, "first")
    before = contents(tmp_path)
    with pytest.raises(KeyboardInterrupt), ReportFolder(tmp_path, TITLE, NAMES).writing() as made:  # noqa: PT012
        (made / REPORT).write_text("half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == before


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(FileExistsError), ReportFolder(tmp_path, TITLE, NAMES).writing() as made:  # noqa: PT012
        (made / REPORT).write_text(f"{TITLE}\n")
        (tmp_path / REPORT).write_text("mine")
    assert contents(tmp_path) == {REPORT: b"mine"}
