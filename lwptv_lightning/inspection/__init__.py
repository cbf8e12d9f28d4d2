"""What checkpoints are like, before anything is merged."""

from lwptv_lightning.inspection.check import SAME_BASE, check, check_tables
from lwptv_lightning.inspection.diff import diff, diff_table

__all__ = ["SAME_BASE", "check", "check_tables", "diff", "diff_table"]
