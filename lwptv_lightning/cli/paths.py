"""The paths in a configuration file, which are relative to the file, as they are from where the command runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lwptv_lightning.registry import ConfigurationError

SETS = ("id", "ood", "validation")
_LIBRARIES = ("torchvision/", "torch/", "hf/", "hfds/", "hfids/", "tfds/", "wds/")


def seen_from_here(values: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return a file's values with its paths, which are relative to the file, as they are from where the command runs.

    What stands under a ``class_path`` is the class's own matter.
    """
    found = dict(values)
    if isinstance(model := values.get("model"), Mapping) and is_old(model):
        return found
    for name in ("base", "recipe", "data_statistics"):
        if isinstance(value := values.get(name), str) and (name != "recipe" or value.endswith(".json")):
            found[name] = from_here(value, folder)
    if isinstance(tasks := values.get("tasks"), Mapping):
        found["tasks"] = {
            task: from_here(value, folder) if isinstance(value, str) else value for task, value in tasks.items()
        }
    if isinstance(heads := values.get("heads"), str):
        found["heads"] = from_here(heads, folder)
    elif isinstance(heads, Mapping):
        known = {*heads, *(values.get("tasks") or {})}
        found["heads"] = {name: _head(value, known, folder) for name, value in heads.items()}
    if isinstance(recipes := values.get("recipes"), Mapping):
        found["recipes"] = {
            name: from_here(value, folder) if isinstance(value, str) and value.endswith(".json") else value
            for name, value in recipes.items()
        }
    data = values.get("data")
    if isinstance(data, Mapping) and "class_path" not in data:
        found["data"] = dict(data)
        for group in SETS:
            if isinstance(sets := data.get(group), Mapping):
                found["data"][group] = {name: _set(value, folder) for name, value in sets.items()}
    return found


def from_here(path: str, folder: str) -> str:
    """Return a path that is relative to a folder as it is from where the command runs; addresses stay."""
    if path.startswith(("~", "hf-hub:")) or "://" in path:
        return path
    return os.path.normpath(os.path.join(folder, path)) if path else path


def _head(value: Any, known: set[str], folder: str) -> Any:
    if not isinstance(value, str) or value in known:
        return value
    place = from_here(value, folder)
    return place if os.path.exists(place) or os.sep in value else value


def _set(value: Any, folder: str) -> Any:
    if isinstance(value, str):
        if value.lower().startswith(("torchvision/", "torch/")):
            return {"dataset": value, "root": from_here("data", folder)}
        return _set_name(value, folder)
    if not isinstance(value, Mapping) or "class_path" in value:
        return value
    found = dict(value)
    if isinstance(name := value.get("dataset"), str):
        found["dataset"] = _set_name(name, folder)
        if name.lower().startswith(("torchvision/", "torch/")):
            found.setdefault("root", "data")
    if isinstance(root := found.get("root"), str):
        found["root"] = from_here(root, folder)
    return found


def _set_name(name: str, folder: str) -> str:
    if not name.lower().startswith(_LIBRARIES):
        return from_here(name, folder)
    library, _, rest = name.partition("/")
    place = from_here(rest, folder)
    return f"{library}/{place}" if library.lower() == "hf" and os.path.isdir(place) else name


def is_old(model: Mapping[str, Any]) -> bool:
    """Tell whether a configuration's ``model`` is a function of a whole `MergeModule`, whose arguments are its own."""
    from lwptv_lightning.evaluation import MergeModule, named_object, returns

    try:
        return returns(named_object("model.class_path", model.get("class_path")), MergeModule)
    except ConfigurationError:
        return False
