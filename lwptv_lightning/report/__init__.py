"""Tables, pictures and files from figures that are there already."""

from lwptv_lightning.report.pictures import PRUNED_SUFFIX, plot_id_ood, plot_saliency
from lwptv_lightning.report.table import ResultRow, ResultTable, markdown_table, print_table

__all__ = ["ResultRow", "ResultTable", "markdown_table", "plot_id_ood", "plot_saliency", "print_table"]
