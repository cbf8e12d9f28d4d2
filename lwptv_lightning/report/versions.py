"""Which versions of what a run was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from lwptv_lightning import __version__

_LIBRARIES = ("torch", "lightning", "torchmetrics", "timm", "torchvision", "numba")


def library_versions() -> dict[str, str]:
    """Return the versions of this library, of those that decide figures, and of Python.

    Example:
        >>> list(library_versions())[:2]
        ['lwptv_lightning', 'torch']
    """
    found = {"lwptv_lightning": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, "python": platform.python_version()}
