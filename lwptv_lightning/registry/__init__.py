"""Named records, errors that name the nearest match, globs, hyper-parameters that know their range; no torch here."""

from lwptv_lightning.registry.choices import COUNTS, GRANULARITIES, RANKINGS
from lwptv_lightning.registry.declared import (
    check_parameters,
    choice,
    flag,
    number,
    patterns,
    per_task,
    per_task_by_tensor,
    require_per_task,
    whole,
)
from lwptv_lightning.registry.errors import UnknownNameError, nearest, require_known
from lwptv_lightning.registry.globs import matches, require_matches
from lwptv_lightning.registry.registry import Registry
from lwptv_lightning.registry.sizes import parse_bytes

__all__ = [
    "COUNTS",
    "GRANULARITIES",
    "RANKINGS",
    "Registry",
    "UnknownNameError",
    "check_parameters",
    "choice",
    "flag",
    "matches",
    "nearest",
    "number",
    "parse_bytes",
    "patterns",
    "per_task",
    "per_task_by_tensor",
    "require_known",
    "require_matches",
    "require_per_task",
    "whole",
]
