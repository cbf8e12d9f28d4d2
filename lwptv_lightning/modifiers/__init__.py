"""What acts on task vectors before any merging rule, around it, or on what it made, one per file.

A new file here registers its modifier; a recipe's fields ``reweight``, ``subspace`` and ``calibrate`` take it by name.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from lwptv_lightning.modifiers._base import (
    CALIBRATIONS,
    REWEIGHTINGS,
    SUBSPACES,
    Calibration,
    Modifier,
    Reweighting,
    Subspace,
    make_modifier,
    modifier,
)
from lwptv_lightning.modifiers._catalogue import ModifierEntry, modifier_entries, modifiers_markdown
from lwptv_lightning.modifiers._view import reweighted

__all__ = [
    "CALIBRATIONS",
    "REWEIGHTINGS",
    "SUBSPACES",
    "Calibration",
    "Modifier",
    "ModifierEntry",
    "Reweighting",
    "Subspace",
    "make_modifier",
    "modifier",
    "modifier_entries",
    "modifiers_markdown",
    "reweighted",
]

for _module in iter_modules(__path__):
    if not _module.name.startswith("_"):
        import_module(f"{__name__}.{_module.name}")

_CLASSES = {cls.__name__: cls for registry in (REWEIGHTINGS, SUBSPACES, CALIBRATIONS) for cls in registry.values()}


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return _CLASSES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_CLASSES})
