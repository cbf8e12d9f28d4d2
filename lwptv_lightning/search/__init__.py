"""Many merged models evaluated on the same samples, compared in pairs, and chosen among."""

from lwptv_lightning.search.choice import best, choices, one_standard_error
from lwptv_lightning.search.compare import Difference, SweepResult
from lwptv_lightning.search.fronts import Front, FrontComparison, compare_fronts
from lwptv_lightning.search.gates import Gates
from lwptv_lightning.search.sweep import sweep
from lwptv_lightning.search.weights import Candidate

__all__ = [
    "Candidate",
    "Difference",
    "Front",
    "FrontComparison",
    "Gates",
    "SweepResult",
    "best",
    "choices",
    "compare_fronts",
    "one_standard_error",
    "sweep",
]
