"""Many merged models evaluated on the same samples, and compared in pairs."""

from lwptv_lightning.search.compare import Difference, SweepResult
from lwptv_lightning.search.sweep import sweep
from lwptv_lightning.search.weights import Candidate

__all__ = ["Candidate", "Difference", "SweepResult", "sweep"]
