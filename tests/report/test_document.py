import pytest

from lwptv_lightning import MergeRecipe
from lwptv_lightning.report import Findings, PairedDifference, Point, ResultRow, ResultTable, SetAbout
from lwptv_lightning.report.document import Cells, Picture, Words, sections_of

FIGURES = {"id/a": 0.5, "ood/far/b": 0.75, "id/avg": 0.5, "ood/far/avg": 0.75, "ood/avg": 0.75}


def named(findings, pictures=()):
    return {section.title: section.blocks for section in sections_of(findings, pictures)}


def test_all_that_was_found_is_told_conclusion_first():
    table = ResultTable([ResultRow("base", FIGURES), ResultRow("ties", FIGURES, 1.25, "best")])
    found = named(
        Findings(
            "Mine",
            table,
            ["Take ties."],
            [PairedDifference("ties", "base", {"id": (0.125, -0.01, 0.3), "ood/far": (0.0, -0.5, 0.5)})],
            confidence=0.9,
            sets=[SetAbout("id/a", 1234, 4, "Mine.")],
            points=[Point("ties", FIGURES, chosen=True)],
            recipe=MergeRecipe("ties"),
            versions={"torch": "2.14"},
            fingerprints={"base": "abc", "a": None},
            seeds={"random masks": 7},
            notes=["A note."],
        ),
        [Picture("id_ood", "ID and OOD", "alt", "caption")],
    )
    assert list(found) == [
        "", "Results", "Paired differences", "The sets", "ID and OOD", "How it was made", "Notes"
    ]  # fmt: skip
    assert found[""] == [Words("Take ties.")]
    results, explained = found["Results"]
    assert results.headings == ["model", "ID avg", "OOD far avg", "OOD avg", "note", "id a", "ood far/b", "seconds"]
    assert results.rows[1] == ["ties", "50.0", "75.0", "75.0", "best", "50.0", "75.0", "1.25"]
    assert results.words == {0, 4}
    assert results.marked == {1}
    for words in ("ID (in-domain)", "OOD (out-of-domain)", "Seconds are what a merge takes", "Rows in bold"):
        assert words in explained.text
    differences, words = found["Paired differences"]
    assert differences.headings == ["model", "minus", "ID", "OOD far"]
    assert differences.rows == [["ties", "base", "+12.5 [-1.0, +30.0]", "+0.0 [-50.0, +50.0]"]]
    assert "90 % interval" in words.text
    (sets,) = found["The sets"]
    assert sets.rows == [["a", "ID", "1,234", "4", "Mine."], ["b", "OOD, group far", "", "", ""]]
    told = [
        cell for block in found["How it was made"] if isinstance(block, Cells) for row in block.rows for cell in row
    ]
    assert {"ties", "abc", "unknown", "2.14", "7", "random masks"} <= {*told}


def test_what_is_absent_leaves_nothing_behind():
    found = named(Findings("Mine", ResultTable([ResultRow("base", FIGURES)])))
    assert list(found) == ["Results", "The sets", "How it was made"]
    assert found["Results"][0].headings == ["model", "ID avg", "OOD far avg", "OOD avg", "id a", "ood far/b"]
    assert "econds" not in found["Results"][1].text
    assert "bold" not in found["Results"][1].text
    assert [type(block) for block in found["How it was made"]] == [Words]
    assert list(named(Findings("Mine", ResultTable([])))) == ["How it was made"]


def test_seconds_of_another_kind_are_explained_so():
    table = ResultTable([ResultRow("ties", FIGURES, 3.0)])
    assert "Of a whole night." in named(Findings("Mine", table, seconds="Of a whole night."))["Results"][1].text


def test_other_measures_are_no_accuracies():
    table = ResultTable([ResultRow("a", {"id/a": 2.5, "id/avg": 2.5}, plain={"id/a", "id/avg"})])
    cells = named(Findings("Mine", table))["Results"][0]
    assert "other measures" in cells.caption
    assert cells.rows == [["a", "2.5", "2.5"]]


@pytest.mark.parametrize(("rows", "sets"), [(5000, 3), (40, 2000), (2, 20_000)])
def test_tables_are_bounded_and_say_what_they_leave_out(rows, sets):
    figures = {f"id/{number}": 0.5 for number in range(sets)} | {"id/avg": 0.5}
    table = ResultTable([ResultRow(f"m{number}", figures) for number in range(rows)])
    found = named(Findings("Mine", table))
    cells, *_, words = found["Results"]
    assert sum(map(len, cells.rows)) <= 15_000
    assert "results.csv" in words.text
    assert len(found["The sets"][0].rows) <= 600
    if sets > 600:
        assert f"{sets - 600} further sets" in found["The sets"][1].text
