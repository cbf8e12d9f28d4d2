import dataclasses
import re
import xml.etree.ElementTree as ElementTree

import pytest
from _helpers.made_findings import findings_of
from _helpers.markup import Page
from PIL import Image

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


def test_every_figure_is_there_as_png_svg_and_csv(written):
    names = {path.name for path in (written / "figures").iterdir()}
    stems = ("id_ood", "saliency", "ratio", "tasks", "similarity", "changes")
    assert names == {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg", "csv")}
    markdown = (written / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\((figures/[^)]*)\)", markdown)
    assert linked == [f"figures/{stem}.png" for stem in stems]
    for name in linked:
        with Image.open(written / name) as image:
            assert min(image.size) > 200


def test_the_page_is_valid_and_light(written):
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    assert page.faults == []
    assert (written / "report.html").stat().st_size < 1_500_000
    assert len(page.of("img")) == 12


@pytest.mark.parametrize(
    "size",
    [
        {"tasks": 40, "layers": 200, "rules": 2},
        pytest.param({"tasks": 120, "layers": 1200, "rules": 40}, marks=pytest.mark.long),
    ],
    ids=["most crosses", "most of all"],
)
def test_a_page_of_any_size_is_below_five_megabytes(size, tmp_path):
    page = write_report(findings_of(**size), tmp_path)
    assert page.stat().st_size < 5_000_000
    assert Page(page.read_text(encoding="utf-8")).faults == []


def test_odd_names_do_nothing(tmp_path):
    odd = "</p><script>x</script> $x$ 中\x1b \ud800 | ` {} ="
    page = write_report(findings_of(tasks=2, layers=3, groups=(), far=1, name=odd), tmp_path)
    found = Page(page.read_text(encoding="utf-8"))
    assert found.faults == []
    assert "<script>x</script> $x$ 中\\x1b \\ud800" in found.text
    for path in (tmp_path / "figures").glob("*.svg"):
        ElementTree.parse(path)


def test_figures_that_a_later_report_has_not_are_gone(tmp_path):
    one = dataclasses.replace(FOUND, curves={"mean_abs": [(0.0, 0.5), (0.5, 0.25)]})
    write_report(one, tmp_path)
    assert len(list((tmp_path / "figures").iterdir())) == 3
    (tmp_path / "figures" / "mine.png").write_text("mine")
    write_report(FOUND, tmp_path)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["mine.png"]
    assert "figures/" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("name", ["figures", "figures/ratio.png", "figures/ratio.csv", "figures/ratio.svg"])
def test_figures_of_others_are_not_replaced(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=name):
        write_report(FOUND, tmp_path)
    assert contents(tmp_path) == {name: b"mine"}
