"""All figures of a report that there is something to draw for."""

from __future__ import annotations

from lwptv_lightning.report.bars import draw_bars
from lwptv_lightning.report.canvas import Drawing
from lwptv_lightning.report.findings import Findings
from lwptv_lightning.report.heat_maps import draw_saliency, draw_similarity
from lwptv_lightning.report.lines import draw_changes, draw_curves
from lwptv_lightning.report.scatter import draw_scatter
from lwptv_lightning.report.table import ResultRow

FIGURE_NAMES = ("id_ood", "saliency", "ratio", "tasks", "similarity", "changes")
"""What the files of figures are called, in the order of a report."""
_MOST_MODELS = 4


def draw_figures(findings: Findings) -> list[Drawing]:
    """Return the figures of a report, in its order; those without data are left out.

    Example:
        >>> from lwptv_lightning.report import ResultTable
        >>> draw_figures(Findings("Mine", ResultTable([])))
        []
    """
    drawn = (
        draw_scatter(findings.points) if findings.points else None,
        draw_saliency(findings.plan) if findings.plan is not None else None,
        draw_curves(findings.curves) if findings.curves else None,
        draw_bars(_compared(findings), findings.experts) if findings.experts else None,
        draw_similarity(findings.similarity) if findings.similarity is not None else None,
        draw_changes(findings.changes) if findings.changes else None,
    )
    return [each for each in drawn if each is not None]


def _compared(findings: Findings) -> list[ResultRow]:
    """Return the rows that are set against the experts."""
    rows = {row.name: row for row in findings.table.rows}
    chosen = [point.name for point in findings.points if point.chosen]
    known = {point.name for point in findings.points if point.family in ("base", "expert")}
    last = [name for name in rows if name not in known][-_MOST_MODELS:]
    return [rows[name] for name in findings.compared or chosen or last if name in rows]
