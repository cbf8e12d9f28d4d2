"""Named records, errors that name the nearest match, globs, declared fields that know their range; no torch here."""

from lwptv_lightning.registry.choices import COUNTS, GRANULARITIES, RANKINGS
from lwptv_lightning.registry.declared import (
    Converted,
    check_parameters,
    choice,
    declared,
    describe_field,
    documented,
    explain_field,
    flag,
    fraction,
    from_values,
    number,
    patterns,
    per_task,
    per_task_by_tensor,
    require_finite,
    require_per_task,
    require_ratio,
    whole,
)
from lwptv_lightning.registry.errors import UnknownNameError, nearest, require_known
from lwptv_lightning.registry.frozen import FrozenDict
from lwptv_lightning.registry.globs import matches, require_matches
from lwptv_lightning.registry.loader_name import DOMAINS, LoaderName
from lwptv_lightning.registry.registry import Registry
from lwptv_lightning.registry.sizes import parse_bytes

__all__ = ["LoaderName", "UnknownNameError"]
