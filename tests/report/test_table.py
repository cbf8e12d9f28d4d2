"""Tables in their three forms, and pictures that are really there."""

import csv
import io

from rich.console import Console
from rich.table import Table

from lwptv_lightning.report import ResultRow, ResultTable, print_table

ROWS = [
    ResultRow("base", {"id/a": 0.5, "id/avg": 0.5, "ood/b_c": 0.25, "ood/avg": 0.25}),
    ResultRow("ties", {"id/a": 2 / 3, "id/avg": 2 / 3, "ood/b_c": 1.0, "ood/avg": 1.0}, 1.234, "best"),
]


def test_averages_come_last_and_every_row_has_every_column():
    table = ResultTable(ROWS)
    assert table.columns == ("id/a", "ood/b_c", "id/avg", "ood/avg")
    assert table.cells(ROWS[1]) == ["ties", "66.7", "100.0", "66.7", "100.0", "1.23", "best"]
    assert {len(table.cells(row)) for row in ROWS} == {len(table.headings)}


def test_csv_keeps_full_precision(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(ResultTable(ROWS).csv())
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["id/a"]) == 2 / 3
    assert rows[0]["seconds"] == ""


def test_markdown_has_a_line_for_each_row():
    lines = ResultTable(ROWS).markdown().splitlines()
    assert len(lines) == 4
    assert lines[0] == "| model | id a | ood b c | ID avg | OOD avg | seconds | note |"
    assert len({line.count("|") for line in lines}) == 1


def test_a_table_of_averages_leaves_out_single_loaders():
    figures = {"id/a": 0.5, "id/avg": 0.5, "ood/near/b_c": 0.25, "ood/near/avg": 0.25, "ood/avg": 0.25}
    table = ResultTable([*ROWS, ResultRow("grouped", figures, 2.5, "note", plain={"ood/avg"})])
    assert table.headings[1:-2] == ["id a", "ood b c", "ood near/b c", "ID avg", "OOD avg", "OOD near avg"]
    averages = table.of_averages()
    assert averages.headings == ["model", "ID avg", "OOD avg", "OOD near avg", "seconds", "note"]
    assert averages.cells(averages.rows[-1]) == ["grouped", "50.0", "0.25", "25.0", "2.50", "note"]
    assert averages.cells(averages.rows[0]) == ["base", "50.0", "25.0", "", "", ""]


def test_rich_table_has_a_row_for_each_model():
    assert ResultTable(ROWS).rich().row_count == 2


def test_no_figure_is_cut_off_where_the_terminal_is_narrow():
    table = Table(*(f"heading {index}" for index in range(12)))
    cells = [f"figure-{index}-{'x' * 20}" for index in range(12)]
    table.add_row(*cells)
    console = Console(file=io.StringIO(), width=40)
    print_table(table, console)
    printed = console.file.getvalue()
    assert all(cell in printed for cell in cells)
    assert "…" not in printed


def test_a_wide_terminal_stays_as_it_is():
    console = Console(file=io.StringIO(), width=200)
    print_table(Table("a"), console)
    assert console.width == 200


def test_figures_that_are_no_fractions_are_shown_as_they_are():
    row = ResultRow("a", {"id/a": 0.5, "id/b": 12.34567, "id/avg": 0.25}, plain={"id/b"})
    assert ResultTable([row]).cells(row) == ["a", "50.0", "12.35", "25.0", "", ""]
    assert "0.5,12.34567,0.25" in ResultTable([row]).csv()
