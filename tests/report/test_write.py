import dataclasses

import pytest

from lwptv_lightning import MergeRecipe
from lwptv_lightning.report import (
    Findings,
    PairedDifference,
    ResultRow,
    ResultTable,
    SetAbout,
    identity_of,
    report_folder,
    write_report,
)

TABLE = ResultTable(
    [
        ResultRow("base", {"id/a": 0.5, "ood/far/b": 0.75, "id/avg": 0.5, "ood/avg": 0.75}),
        ResultRow("ties", {"id/a": 0.625, "ood/far/b": 0.5, "id/avg": 0.625, "ood/avg": 0.5}, 1.25, "best"),
    ]
)
FOUND = Findings(
    "My merge",
    TABLE,
    ["Take ties."],
    [PairedDifference("ties", "base", {"id": (0.125, 0.01, 0.3)})],
    sets=[SetAbout("id/a", 8, 4, "Mine.")],
    recipe=MergeRecipe("ties"),
    fingerprints={"base": "abc"},
)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_findings_make_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        assert write_report(FOUND, tmp_path / name) == tmp_path / name / "report.html"
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_an_identical_run_goes_on_and_another_one_is_refused(tmp_path):
    write_report(FOUND, tmp_path)
    before = contents(tmp_path)
    write_report(FOUND, tmp_path)
    assert contents(tmp_path) == before
    other = dataclasses.replace(FOUND, recipe=MergeRecipe("ties", 0.5))
    with pytest.raises(FileExistsError, match=r"report of another run.*overwrite=True"):
        write_report(other, tmp_path)
    assert contents(tmp_path) == before
    write_report(other, tmp_path, overwrite=True)
    write_report(other, tmp_path)


def test_whether_a_report_can_be_there_is_known_before_a_run(tmp_path):
    named = dataclasses.replace(FOUND, run="my configuration")
    write_report(named, tmp_path)
    report_folder(tmp_path, FOUND.title, identity_of("my configuration")).require_own()
    with pytest.raises(FileExistsError, match="another run"):
        report_folder(tmp_path, FOUND.title, identity_of("another configuration")).require_own()
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(FileExistsError, match="holds 'report.html'"):
        report_folder(tmp_path, FOUND.title, identity_of("my configuration")).require_own()
