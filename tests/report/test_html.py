import pytest
from _helpers.markup import Page

from lwptv_lightning.report.document import Cells, Picture, Section, Words
from lwptv_lightning.report.html import html_of

HOSTILE = "</title></style></main>\"'><script>alert(1)</script><!-- &amp; \x00\x1b\u202e\ud800 -->"


def page_of(text):
    cells = Cells(text, ["model", text], [[text, "1.0"], ["b", text]], marked=frozenset({1}))
    picture = Picture("id_ood", text, text, text, b"<svg/>", b"<svg></svg>")
    sections = [Section("", [Words(text)]), Section(text, [cells, picture]), Section(text, [Words(text)])]
    return html_of(text, sections)


@pytest.mark.parametrize("text", ["plain", HOSTILE])
def test_a_page_is_well_formed_whatever_is_in_names(text):
    written = page_of(text)
    assert {*written} & {"\x00", "\x1b", "\u202e", "\ud800"} == set()
    page = Page(written)
    assert page.faults == []
    assert [each["class"] for each in page.of("tr") if each] == ["chosen"]
    assert len(page.of("th")) == 4
    assert "default-src 'none'" in str(page.of("meta"))


def test_a_name_is_read_as_it_was_written():
    shown = HOSTILE.replace("\x00", "\\x00").replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    page = Page(page_of(HOSTILE))
    shown = shown.replace("\ud800", "\\ud800")
    assert page.text.count(shown) == 11
    assert page.of("img")[0]["alt"] == shown


@pytest.mark.parametrize(
    "broken",
    [
        "<p>", "</p>", "<p><p></p></p>", '<a id="x"></a><b id="x"></b>', "<h4></h4>", "<h1></h1>", "<th></th>",
        '<img src="data:,">', '<img src="a.png" alt="a">', "<script></script>", '<p onclick=""></p>',
        '<div aria-labelledby="no"></div>',
    ],
)  # fmt: skip
def test_what_is_broken_is_found(broken):
    whole = html_of("a", [Section("b", [Words("c")])])
    assert Page(whole).faults == []
    assert Page(whole.replace("<p>c</p>", broken)).faults
