"""Whether a configuration in the flat form says what a run needs: each key known, of its kind, its files there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from lwptv_lightning.cli.configuration import OWN_KEYS, nearest_below
from lwptv_lightning.cli.paths import SETS, from_here
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import ConfigurationError, nearest, shown

DATA_KEYS = (
    "id",
    "ood",
    "validation",
    "batch_size",
    "num_workers",
    "image_size",
    "mean",
    "std",
    "crop_pct",
    "interpolation",
    "crop_mode",
)
_WRITES_ONE = " `lwptv init FOLDER` writes a configuration."


def require_known_keys(values: Mapping[str, Any], others: Collection[str]) -> None:
    """Raise a `ConfigurationError` for a key at the top that no command knows."""
    known = (*OWN_KEYS, *others)
    for key in values:
        if key not in known:
            below = [f"{place}.{each}" for place, names in _BELOW.items() for each in names if each == key]
            hint = f" Did you mean {below[0]!r}?" if below else nearest(key, known)
            raise ConfigurationError(key, f"unknown key.{hint or f' Known: {_listed(known)}.'}")


def require_any(values: Mapping[str, Any]) -> None:
    """Raise a `ConfigurationError` where nothing is said at all."""
    if not {*values} & {*OWN_KEYS}:
        raise ConfigurationError(
            "",
            "the following arguments are required: --config FILE, or --model, --base, --tasks and --data."
            f"{_WRITES_ONE}",
        )


_BELOW = {"data": DATA_KEYS, "recipe": tuple(field.name for field in dataclasses.fields(MergeRecipe))}


def require_model(values: Mapping[str, Any]) -> None:
    """Raise a `ConfigurationError` unless model, base, tasks and what goes with them are said as a run needs it."""
    for key, check in _CHECKS.items():
        if (value := values.get(key)) is not None:
            check(key, value)
        elif key in ("model", "base", "tasks"):
            raise ConfigurationError(key, f"it is required: {_MEANT[key]}.{_WRITES_ONE}")
    require_checkpoint("base", values["base"])
    for task, path in values["tasks"].items():
        require_checkpoint(f"tasks.{task}", path)
    _require_heads(values)
    require_recipe("recipe", values.get("recipe"))


_MEANT = {
    "model": "a name of timm, such as resnet18, or {class_path: ..., init_args: ...}",
    "base": "the checkpoint that all were fine-tuned from",
    "tasks": "a mapping of each task's name to its checkpoint",
    "data": "its sets, id: {task: folder} and ood: {name: folder}",
}


def _require_heads(values: Mapping[str, Any]) -> None:
    heads = values.get("heads")
    if isinstance(heads, str):
        require_checkpoint("heads", heads)
    sets = {*values["tasks"], *(heads if isinstance(heads, Mapping) else ())}
    for name, head in heads.items() if isinstance(heads, Mapping) else ():
        if not isinstance(head, str) or (head in sets and (head != name or head in values["tasks"])):
            continue
        try:
            require_checkpoint(f"heads.{name}", head)
        except ConfigurationError as error:
            near = nearest(head, sets - {name}) or error.problem.removeprefix(
                f"there is no checkpoint at {shown(head)}."
            )
            raise ConfigurationError(
                f"heads.{name}", f"{shown(head)} is neither another set with a head nor a checkpoint.{near}"
            ) from error


def require_data(values: Mapping[str, Any]) -> None:
    """Raise a `ConfigurationError` unless the sets are said as a run needs it."""
    data = values.get("data")
    if data is None:
        raise ConfigurationError("data", f"it is required: {_MEANT['data']}.{_WRITES_ONE}")
    _mapping("data", data)
    if "class_path" in data:
        return
    for key, value in data.items():
        if key not in DATA_KEYS:
            raise ConfigurationError(f"data.{key}", f"unknown key.{nearest_below('data', key, DATA_KEYS)}")
        if key in SETS and value is not None:
            _mapping(f"data.{key}", value)
    if not data.get("id") and not data.get("ood"):
        raise ConfigurationError("data.id", f"there is no set: expected {_MEANT['data']}.")
    for key, least in (("batch_size", 1), ("num_workers", 0)):
        if (value := data.get(key)) is not None and (type(value) is not int or value < least):
            raise ConfigurationError(f"data.{key}", f"expected a whole number of at least {least}, not {shown(value)}.")


def require_checkpoint(key: str, path: Any) -> None:
    """Raise a `ConfigurationError` with what is near where a checkpoint's path leads nowhere."""
    _text(key, path)
    if from_here(path, "x") == path and not Path(path).is_absolute():  # an address, or a home folder
        return
    file = Path(path).expanduser()
    try:
        is_there = file.exists()
    except OSError as error:
        raise ConfigurationError(key, f"{shown(path)}: {error.strerror}.") from error
    if is_there:
        return
    above = file.parent
    while not above.is_dir() and above.parent != above:
        file, above = above, above.parent
    near = nearest(file.name, [each.name for each in above.iterdir()] if above.is_dir() else [])
    place = "" if file == Path(path).expanduser() else f" {str(above)!r} has no {file.name!r}."
    raise ConfigurationError(key, f"there is no checkpoint at {shown(path)}.{place}{near}")


def require_recipe(key: str, value: Any) -> None:
    """Raise a `ConfigurationError` that names the field of a recipe which is unknown or cannot be taken."""
    from lwptv_lightning.recipe import make_recipe

    if value is None:
        return
    if not isinstance(value, str | Mapping):
        raise ConfigurationError(
            key, f"expected a rule's name, fields of a recipe or its .json file, not {shown(value)}."
        )
    fields = {field.name: field for field in dataclasses.fields(MergeRecipe)}
    own: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    for name, given in own.items():
        if name not in fields:
            raise ConfigurationError(
                f"{key}.{name}", f"unknown key.{_of_rule(key, name, own) or nearest_below(key, name, fields)}"
            )
        try:
            fields[name].metadata["check"](f"{key}.{name}", given)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{key}.{name}", str(error).removeprefix(f"{key}.{name} ")) from error
    try:
        make_recipe(value)
    except OSError as error:
        raise ConfigurationError(key, f"{shown(value)}: {error.strerror or error}.") from error
    except (TypeError, ValueError) as error:
        raise ConfigurationError(key, str(error)) from error


def _of_rule(key: str, name: str, recipe: Mapping[str, Any]) -> str:
    """Say where a rule's hyper-parameter stands, which was given beside the rule."""
    from lwptv_lightning.rules import make_rule

    rule = recipe.get("rule")
    try:
        named = make_rule(rule) if rule is not None else None  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    known = [] if named is None else [field.name for field in dataclasses.fields(named)]  # type: ignore[arg-type]
    return f" It is of the rule {named.name!r}: {key}.rule.{name}." if named is not None and name in known else ""


def _listed(known: Collection[str]) -> str:
    return ", ".join(known)


def _text(key: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigurationError(key, f"expected a path, not {shown(value)}.")


def _mapping(key: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ConfigurationError(key, f"expected a mapping of names, {{name: ...}}, not {shown(value)}.")


def _tasks(key: str, value: Any) -> None:
    _mapping(key, value)
    if not value:
        raise ConfigurationError(key, f"there is none: expected {_MEANT['tasks']}.")
    for task, path in value.items():
        _text(f"{key}.{task}", path)


def _model(key: str, value: Any) -> None:
    if not isinstance(value, str | Mapping) or (isinstance(value, Mapping) and "class_path" not in value):
        raise ConfigurationError(key, f"expected {_MEANT['model']}, not {shown(value)}.")


def _heads(key: str, value: Any) -> None:
    if isinstance(value, str):
        return
    _mapping(key, value)
    for name, head in value.items():
        if not isinstance(head, str) and not (isinstance(head, Mapping) and "class_path" in head):
            raise ConfigurationError(
                f"{key}.{name}", f"expected another set's name, a checkpoint or {{class_path: ...}}, not {shown(head)}."
            )


def _texts(key: str, value: Any) -> None:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ConfigurationError(key, f"expected a list of globs, [head.*], not {shown(value)}.")


def _numbers(key: str, value: Any) -> None:
    _mapping(key, value)
    for name, number in value.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ConfigurationError(f"{key}.{name}", f"expected a number, not {shown(number)}.")
        if not 0 < number < float("inf"):
            raise ConfigurationError(f"{key}.{name}", f"expected a number above 0, not {shown(number)}.")


def _flag(key: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigurationError(key, f"expected true or false, not {shown(value)}.")


def _list(key: str, value: Any) -> None:
    if not isinstance(value, list):
        raise ConfigurationError(key, f"expected a list, [inputs, targets], not {shown(value)}.")


def _key(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ConfigurationError(key, f"expected a name or a place, not {shown(value)}.")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "model": _model,
    "model_arguments": _mapping,
    "base": _text,
    "tasks": _tasks,
    "heads": _heads,
    "exclude": _texts,
    "prefix": _text,
    "metric": _mapping,
    "expert_accuracy": _numbers,
    "batch_keys": _list,
    "output_key": _key,
    "resize_position_embedding": _flag,
}
