"""Figures that a report wrote, for a model's card."""

from __future__ import annotations

import csv
from pathlib import Path

from lwptv_lightning.files import InputFile
from lwptv_lightning.registry import nearest, printable, shown

_OTHERS = ("model", "seconds", "note")
"""Columns that hold no figures."""


def read_results(path: str | Path) -> dict[str, dict[str, float]]:
    """Read a ``results.csv`` as reports write it: a model's name to its figures, by loader or average.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such table.
    """
    source = printable(path)
    try:
        lines = list(csv.reader(InputFile.at(path).text().decode("utf-8").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{source}: expected the results.csv of a report ({error}).") from error
    columns = lines[0] if lines else []
    if columns[:1] != ["model"] or not set(columns) - set(_OTHERS):
        raise ValueError(f"{source}: expected the results.csv of a report, whose first column is 'model'.")
    return {
        _name(line[0]): {
            column: _number(f"{source}: {column!r} of {line[0]!r}", cell)
            for column, cell in zip(columns, line, strict=False)
            if column not in _OTHERS and cell
        }
        for line in lines[1:]
        if line
    }


def own_row(results: dict[str, dict[str, float]], name: str, source: str | Path) -> dict[str, float]:
    """Take a model's row out of some results, and return it.

    Raises:
        ValueError: There is none of this name.
    """
    if name not in results:
        raise ValueError(f"{printable(source)}: no row is called {shown(name)}.{nearest(name, results)}")
    return results.pop(name)


def _name(cell: str) -> str:
    """Return a name as it was before a spreadsheet was kept from computing it."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in tuple("=+-@") else cell


def _number(what: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{what} must be a number, not {shown(cell)}.") from None
