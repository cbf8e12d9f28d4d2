"""The embedded default: a small real base model, five experts tuned from it, their ID and OOD sets.

Example:
    >>> from lwptv_lightning.zoo import ID_SETS, expert_paths
    >>> tuple(expert_paths()) == ID_SETS
    True
"""

from lwptv_lightning.zoo.build import build
from lwptv_lightning.zoo.data import dataset, loaders
from lwptv_lightning.zoo.domains import ID_SETS, OOD_SETS
from lwptv_lightning.zoo.files import base_path, expert_paths, heads
from lwptv_lightning.zoo.model import create_model

__all__ = [
    "ID_SETS",
    "OOD_SETS",
    "base_path",
    "build",
    "create_model",
    "dataset",
    "expert_paths",
    "heads",
    "loaders",
]
