import io

from rich.console import Console
from rich.table import Table

from lwptv_lightning.report import print_table


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
