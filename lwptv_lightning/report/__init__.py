"""Tables, pictures and files from figures that are there already."""

from lwptv_lightning.registry import literal, markdown_table
from lwptv_lightning.report.adapter import adapter_summary, adapter_table
from lwptv_lightning.report.findings import (
    FAMILIES,
    Findings,
    Interval,
    PairedDifference,
    Point,
    SetAbout,
    Similarity,
    identity_of,
)
from lwptv_lightning.report.folder import PAGE, RECIPE, REPORT, RESULTS, ReportFolder
from lwptv_lightning.report.pictures import PRUNED_SUFFIX, plot_id_ood, plot_saliency
from lwptv_lightning.report.progress import progress
from lwptv_lightning.report.table import ResultRow, ResultTable, percent
from lwptv_lightning.report.terminal import print_table, print_text, room_of
from lwptv_lightning.report.versions import library_versions
from lwptv_lightning.report.write import make_report, report_folder, write_report

__all__ = [
    "Findings",
    "PairedDifference",
    "Point",
    "ResultRow",
    "ResultTable",
    "SetAbout",
    "Similarity",
    "markdown_table",
    "plot_id_ood",
    "plot_saliency",
    "print_table",
    "progress",
    "write_report",
]
