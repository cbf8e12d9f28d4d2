"""Many merged models evaluated on the same samples, and compared in pairs."""

from lwptv_lightning.search.compare import Difference, SweepResult
from lwptv_lightning.search.sweep import Candidate, sweep

__all__ = ["Candidate", "Difference", "SweepResult", "sweep"]
