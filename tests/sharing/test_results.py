import pytest

from lwptv_lightning.report import ResultRow, ResultTable
from lwptv_lightning.sharing import own_row, read_results


def test_what_a_report_wrote_is_read(tmp_path):
    rows = [
        ResultRow("base", {"id/a": 0.5, "id/avg": 0.5}),
        ResultRow("=ties, 'x'", {"id/a": 1 / 3, "ood/b|c": float("nan")}, 1.5, "note"),
    ]
    path = tmp_path / "results.csv"
    path.write_text(ResultTable(rows).csv())
    found = read_results(path)
    assert list(found) == ["base", "=ties, 'x'"]
    assert found["base"] == {"id/a": 0.5, "id/avg": 0.5}
    assert found["=ties, 'x'"]["id/a"] == 1 / 3
    assert set(found["=ties, 'x'"]) == {"id/a", "ood/b|c"}


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "model,seconds,note\nbase,1,\n", "\n"])
def test_another_table_is_refused(text, tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"results\.csv: expected the results.csv of a report"):
        read_results(path)


def test_what_is_no_number_is_named(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("model,id/a\nbase,half\n")
    with pytest.raises(ValueError, match="'id/a' of 'base' must be a number, not 'half'"):
        read_results(path)
    path.write_bytes(b"model,id/a\n\xff,1\n")
    with pytest.raises(ValueError, match="expected the results.csv of a report"):
        read_results(path)


def test_a_row_is_asked_for_by_its_name():
    results = {"base": {"id/a": 0.5}, "ties x 1": {"id/a": 0.75}}
    with pytest.raises(ValueError, match=r"r\.csv: no row is called 'ties x 2'. Did you mean 'ties x 1'"):
        own_row(results, "ties x 2", "r.csv")
    assert own_row(results, "ties x 1", "r.csv") == {"id/a": 0.75}
    assert list(results) == ["base"]
