from lwptv_lightning.report.document import Cells, Picture, Section, Words
from lwptv_lightning.report.markdown import heading_of, markdown_of

HOSTILE = "<img src=x>|`$[a](b)\n# c\x1b"


def test_what_looks_like_markup_is_shown():
    cells = Cells(HOSTILE, ["model", HOSTILE], [[HOSTILE, "1.0"], ["b", ""]], marked=frozenset({1}))
    picture = Picture("id_ood", "ID", "Base: [50]", HOSTILE)
    text = markdown_of(HOSTILE, [Section(HOSTILE, [Words(HOSTILE), cells, picture])], "0af3")
    assert text.startswith(heading_of(HOSTILE) + "\n")
    assert "\x1b" not in text
    assert "<!-- run 0af3 -->" in text
    for line in text.replace("<!-- run 0af3 -->", "").splitlines():
        assert "<img" not in line.replace(r"\<", "")
        assert not line.startswith("# c")
    assert r"![Base: \[50\]](figures/id_ood.png)" in text
    assert "| **b** |  |" in text
    assert [line.count(" | ") for line in text.splitlines() if line.startswith("| ")] == [1, 1, 1]
