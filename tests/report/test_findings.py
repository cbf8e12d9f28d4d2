import dataclasses

import pytest

from lwptv_lightning import MergeRecipe
from lwptv_lightning.report import Findings, PairedDifference, Point, ResultRow, ResultTable, SetAbout, Similarity
from lwptv_lightning.report.findings import identity_of

TABLE = ResultTable([ResultRow("base", {"id/a": 0.5, "id/avg": 0.5})])


def test_title_and_table_are_enough():
    found = Findings("Mine", TABLE)
    assert all(not getattr(found, field.name) for field in dataclasses.fields(found)[2:] if field.name != "confidence")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Findings(" ", TABLE), ValueError, "title is empty"),
        (lambda: Findings("a", [TABLE]), TypeError, "table must be a ResultTable"),
        (lambda: Findings("a", TABLE, "one text"), TypeError, "conclusion must be texts"),
        (lambda: Findings("a", TABLE, points=[TABLE]), TypeError, "each of points must be a Point"),
        (lambda: Findings("a", TABLE, curves=[1]), TypeError, "curves must be a mapping"),
        (lambda: Findings("a", TABLE, recipe={}), TypeError, "recipe must be a MergeRecipe"),
        (lambda: Findings("a", TABLE, confidence=95), ValueError, r"confidence must be a number in \(0, 1\)"),
        (lambda: Findings("a", TABLE, compared=["bade"]), KeyError, "unknown row 'bade'.*base"),
        (lambda: Point("a", {}, "prunned"), KeyError, "pruned"),
        (lambda: PairedDifference("a", "b", {"id": (0.1, 0.2)}), TypeError, "over 'id' must be"),
        (lambda: SetAbout("cats"), ValueError, "must be named"),
        (lambda: Similarity(("a", "b"), [[1.0, 0.0]]), ValueError, "2 rows of 2 numbers"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_runs_of_other_checkpoints_recipes_or_sets_differ():
    base = Findings("Mine", TABLE, fingerprints={"base": "0"}, recipe=MergeRecipe("ties"))
    others = [
        dataclasses.replace(base, fingerprints={"base": "1"}),
        dataclasses.replace(base, recipe=MergeRecipe("ties", 0.5)),
        dataclasses.replace(base, table=ResultTable([ResultRow("base", {"id/b": 0.5, "id/avg": 0.5})])),
        dataclasses.replace(base, run="by hand"),
    ]
    assert len({each.identity for each in (base, *others)}) == 5
    more = ResultTable([*TABLE.rows, ResultRow("further", TABLE.rows[0].figures)])
    assert dataclasses.replace(base, table=more, title="Other words").identity == base.identity
    assert others[-1].identity == identity_of("by hand")
