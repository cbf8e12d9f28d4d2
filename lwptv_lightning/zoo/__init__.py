"""The embedded default: a small real base model, five experts tuned from it, their ID and OOD sets.

Example:
    >>> from lwptv_lightning.zoo import ID_SETS, expert_paths
    >>> tuple(expert_paths()) == ID_SETS
    True
"""

from importlib import import_module
from typing import Any

from lwptv_lightning.zoo.build import build
from lwptv_lightning.zoo.data import dataset, loaders
from lwptv_lightning.zoo.domains import FAR_SETS, ID_SETS, NEAR_SETS, OOD_SETS
from lwptv_lightning.zoo.files import base_path, expert_paths, heads
from lwptv_lightning.zoo.model import create_model

__all__ = [
    "FAR_SETS",
    "ID_SETS",
    "NEAR_SETS",
    "OOD_SETS",
    "base_path",
    "build",
    "create_model",
    "dataset",
    "expert_paths",
    "heads",
    "loaders",
]

# What needs Lightning is imported on first use: processes that render images have no need of it.
_MODULE_OF = {
    **dict.fromkeys(["Demo", "quiet_trainer", "run_demo"], "demo"),
    **dict.fromkeys(["zoo_module", "zoo_suite"], "builders"),
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
