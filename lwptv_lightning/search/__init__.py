"""Many merged models evaluated on the same samples, compared in pairs, and chosen among."""

from lwptv_lightning.search.budget import Budget
from lwptv_lightning.search.choice import best, choices, one_standard_error
from lwptv_lightning.search.compare import Difference, SweepResult
from lwptv_lightning.search.controls import CHOICES
from lwptv_lightning.search.finished import install_chosen_
from lwptv_lightning.search.fronts import Front, FrontComparison, compare_fronts
from lwptv_lightning.search.gates import Gates
from lwptv_lightning.search.geometry import changes_by_layer, cosines
from lwptv_lightning.search.space import SearchSpace
from lwptv_lightning.search.strategies import STRATEGIES
from lwptv_lightning.search.sweep import sweep
from lwptv_lightning.search.told import TITLE, findings_of
from lwptv_lightning.search.tune import tune
from lwptv_lightning.search.tuned import TuneResult
from lwptv_lightning.search.weights import Candidate

__all__ = [
    "Budget",
    "Candidate",
    "Difference",
    "Front",
    "FrontComparison",
    "Gates",
    "SearchSpace",
    "SweepResult",
    "TuneResult",
    "best",
    "choices",
    "compare_fronts",
    "findings_of",
    "install_chosen_",
    "one_standard_error",
    "sweep",
    "tune",
]
