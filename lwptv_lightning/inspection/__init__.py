"""What checkpoints are like, before anything is merged."""

from lwptv_lightning.inspection.architecture import Architecture, find_architecture
from lwptv_lightning.inspection.central import central_checkpoint
from lwptv_lightning.inspection.check import SAME_BASE, TaskCheck, check, check_tables
from lwptv_lightning.inspection.diff import LayerDifference, diff, diff_table
from lwptv_lightning.inspection.verify import Verification, verification_text, verify

__all__ = [
    "SAME_BASE",
    "LayerDifference",
    "TaskCheck",
    "Verification",
    "check",
    "check_tables",
    "diff",
    "diff_table",
    "verification_text",
    "verify",
]
