"""What `check` and `diff` found, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from lwptv_lightning.inspection.check import TaskCheck
from lwptv_lightning.inspection.diff import LayerDifference


def check_tables(findings: Sequence[TaskCheck]) -> list[Table]:
    """Return the findings as tables for a terminal: one of the tasks, one of their cosines where there are several."""
    table = Table(header_style="bold", pad_edge=False)
    for heading in ("task", "format", "matched", "missing", "extra", "shapes", "dtype", "norm", "unchanged", "verdict"):
        text = heading in ("task", "format", "dtype", "verdict")
        table.add_column(heading, justify="left" if text else "right", overflow="fold")
    for found in findings:
        counts = [str(len(names)) for names in (found.missing, found.extra, found.reshaped)]
        norm = "" if found.norm is None else f"{found.norm:.3g}"
        unchanged = "" if found.unchanged is None else f"{100 * found.unchanged:.0f} %"
        dtypes = ", ".join(found.dtypes)
        table.add_row(found.task, found.format, str(found.matched), *counts, dtypes, norm, unchanged, found.verdict)
    read = [found for found in findings if found.cosines is not None]
    if len(read) < 2:
        return [table]
    cosines = Table(title="Cosines of the task vectors", header_style="bold", pad_edge=False)
    cosines.add_column("")
    for found in read:
        cosines.add_column(found.task, justify="right")
    for found in read:
        row = found.cosines or {}
        cosines.add_row(found.task, *(f"{row[other.task]:.2f}" if other.task in row else "" for other in read))
    return [table, cosines]


def diff_table(differences: list[LayerDifference]) -> Table:
    """Return the layers that differ as a table for a terminal, with a last line that counts the others."""
    table = Table(header_style="bold", pad_edge=False)
    for heading in ("layer", "changed tensors", "relative norm", "largest", "note"):
        table.add_column(heading, justify="left" if heading in ("layer", "note") else "right", overflow="fold")
    for layer in differences:
        if layer.changed:
            counts = f"{layer.changed} of {layer.tensors}"
            table.add_row(layer.layer, counts, f"{layer.norm:.3g}", f"{layer.largest:.3g}", layer.note)
    same = sum(not layer.changed for layer in differences)
    table.caption = f"{same} of {len(differences)} layers are equal."
    return table
