"""Named records, errors that name the nearest match, globs, declared fields that know their range; no torch here."""

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
    unusual,
    whole,
)
from lwptv_lightning.registry.given import ConfigurationError, parse_json, require_kind, require_texts, shown
from lwptv_lightning.registry.lookup import (
    Registry,
    UnknownNameError,
    first_match,
    matcher,
    matches,
    nearest,
    require_known,
    require_matches,
)
from lwptv_lightning.registry.markdown import literal, markdown_table
from lwptv_lightning.registry.names import (
    COUNTS,
    DOMAINS,
    GRANULARITIES,
    RANKINGS,
    LoaderName,
    own_tasks,
    require_groups_apart,
)
from lwptv_lightning.registry.order import natural_order
from lwptv_lightning.registry.text import any_character, encodable, printable, printable_name, shortened, width_of
from lwptv_lightning.registry.values import (
    FrozenDict,
    parse_bytes,
    require_finite,
    require_per_task,
    require_ratio,
    require_whole,
)
from lwptv_lightning.registry.work import Advance, Watcher, leads, steps_of, watching, work

__all__ = ["LoaderName", "UnknownNameError"]
