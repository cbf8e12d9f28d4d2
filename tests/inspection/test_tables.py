"""Cells show what they hold."""

import io

import pytest
from _helpers.odd_names import HONEST, HOSTILE
from rich.console import Console
from rich.table import Table

from lwptv_lightning.inspection.tables import cell
from lwptv_lightning.registry import printable


@pytest.mark.parametrize("name", [*HOSTILE, *HONEST])
def test_a_cell_shows_its_text(name):
    table = Table("name", box=None)
    table.add_row(cell(name))
    console = Console(file=io.StringIO(), width=10_000)
    console.print(table)
    assert console.file.getvalue().splitlines()[1].strip() == printable(name).strip()


def test_an_ordinary_name_is_itself():
    assert cell("blocks.0.fc.weight") == "blocks.0.fc.weight"
