"""The configuration of a run as plain values: files and options read into one tree, before anything is made of it.

Everything here works on text, mappings and lists; nothing needs torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lwptv_lightning.cli.paths import SETS, is_old, seen_from_here
from lwptv_lightning.recipe import MODIFIERS
from lwptv_lightning.registry import ConfigurationError, nearest, parse_json, shown

MODEL_KEYS = (
    "model",
    "model_arguments",
    "base",
    "tasks",
    "heads",
    "recipe",
    "exclude",
    "prefix",
    "metric",
    "expert_accuracy",
    "batch_keys",
    "output_key",
    "resize_position_embedding",
)
OWN_KEYS = (*MODEL_KEYS, "data", "tune", "budget")
"""What is read here; all else is the parser's."""
_NAMED = ("heads", "expert_accuracy", *(f"data.{group}" for group in SETS))
"""Sections whose keys are names of a user's own."""
_CHOSEN = tuple(f"recipe.{field}" for field in ("rule", *MODIFIERS))
"""Keys under which a name stands for a mapping with that name."""
_FLAGS = ("resize_position_embedding",)


@dataclass
class Given:
    """What files and options say.

    Attributes:
        values: The tree of all files, and of the options that are of `OWN_KEYS`.
        rest: The other words, for the parser.
        files: The files that were read.
        prints: Whether the configuration is to be printed.
    """

    values: dict[str, Any] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    prints: bool = False


def read_arguments(arguments: Sequence[str]) -> Given:
    """Read the words behind a command: ``--config FILE`` and overrides, ``--recipe.ratio 0.5``, in their order.

    Raises:
        ConfigurationError: A file is missing, empty or no YAML, or an option lacks its value.

    Example:
        >>> read_arguments(["--recipe", "ties", "--recipe.ratio=0.5", "--samples", "9"])
        Given(values={'recipe': {'rule': 'ties', 'ratio': 0.5}}, rest=['--samples', '9'], files=[], prints=False)
    """
    given = Given()
    words = list(arguments)
    while words:
        word = words.pop(0)
        option, equals, value = word.partition("=")
        name = option.removeprefix("--")
        if option in ("--config", "-c"):
            path = value if equals else _next(option, words)
            given.files.append(path)
            given.values = merged(given.values, read_file(path))
        elif option == "--print_config":
            given.prints = True
        elif (
            option.startswith("--")
            and (keys := name.split("."))[0].replace("-", "_") in OWN_KEYS
            and keys[-1] != "help"
        ):
            keys[0] = keys[0].replace("-", "_")
            if not equals and keys[0] in _FLAGS and (not words or words[0].startswith("--")):
                value = "true"
            elif not equals:
                value = _next(option, words)
            put(given.values, keys, value_of(keys, value), "")
        else:
            given.rest.append(word)
    return given


def _next(option: str, words: list[str]) -> str:
    if not words:
        raise ConfigurationError(option, "expected one argument.")
    return words.pop(0)


def read_file(path: str) -> dict[str, Any]:
    """Return what a YAML file says, with the paths of what it names seen from where the command runs.

    Raises:
        ConfigurationError: There is no such file, or it holds no mapping.
    """
    text = _text(path)
    values = parse(text, path)
    if values is None:
        raise ConfigurationError(
            "--config", f"{shown(path)} is empty: `lwptv init FOLDER --out suite.yaml` writes a whole one."
        )
    if not isinstance(values, dict):
        raise ConfigurationError(
            "--config", f"{shown(path)} must be a mapping, model: ..., base: ..., not {shown(values)}."
        )
    return seen_from_here(values, os.path.dirname(path))


def _text(path: str) -> str:
    file = Path(path).expanduser()
    if file.is_dir():
        raise ConfigurationError("--config", f"{shown(path)} is a folder, expected a YAML file in it.")
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        beside = [each.name for each in file.parent.iterdir()] if file.parent.is_dir() else []
        hint = nearest(file.name, beside) or " `lwptv init FOLDER` writes one."
        raise ConfigurationError("--config", f"there is no file {shown(path)}.{hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError("--config", f"{shown(path)} is no text: expected a YAML file.") from error
    except OSError as error:
        raise ConfigurationError("--config", f"{shown(path)}: {error.strerror}.") from error


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML as version 1.2 has it: ``no`` and ``12:30`` are texts, ``1e-3`` is a number; a key stands once."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 (a class of PyYAML's)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self.flatten_mapping(node)
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            name = key_node.value if isinstance(key_node, yaml.ScalarNode) else key
            if not isinstance(name, str):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a text", key_node.start_mark)
            if name in found:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} stands here twice", key_node.start_mark
                )
            found[name] = self.construct_object(value_node, deep=True)  # type: ignore[no-untyped-call]
        return found


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node))


def parse(text: str, path: str) -> Any:
    """Return what YAML text holds, or say at which line it is none."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        hint = " Tabs cannot indent." if "'\\t'" in str(error.problem) else ""
        raise ConfigurationError("--config", f"{shown(path)}{line}: {error.problem or error.context}.{hint}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise ConfigurationError("--config", f"{shown(path)} is no YAML: {reason}.") from error


def value_of(keys: Sequence[str], text: str) -> Any:
    """Return what an option's text means: YAML, but a path or a name as it is."""
    is_path = (
        keys[0] == "base"
        or (keys[0] in ("tasks", "heads") and len(keys) > 1)
        or keys[:2] in [["data", each] for each in SETS]
    )
    if is_path and not text.lstrip().startswith(("{", "[")) and text not in ("null", "~"):
        return text
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        if text.lstrip().startswith(("{", "[")):
            raise ConfigurationError(f"--{'.'.join(keys)}", f"{shown(text)} is no YAML.") from None
        return text


def put(values: dict[str, Any], keys: Sequence[str], value: Any, above: str) -> None:
    """Put a value under nested keys, where what stands in their way is opened: ``recipe: ties`` is its rule's name.

    Raises:
        ConfigurationError: A value that has no parts stands in the way.
    """
    if keys[0] == "model" and isinstance(values.get("model"), str) and not above:
        keys = _lifted(keys)
    first, *rest = _whole(keys, values, above)
    place = f"{above}.{first}" if above else first
    if not rest:
        values[first] = value
        return
    inner = values.get(first)
    if place == "recipe" and isinstance(inner, str):
        inner = _recipe_of(inner)
    elif place in _CHOSEN and isinstance(inner, str):
        inner = {"name": inner}
    if place == "data" and isinstance(inner, Mapping) and "class_path" not in inner and rest[0] == "init_args":
        rest = rest[1:]
    elif above in _NAMED[2:] and isinstance(inner, str):
        inner = {} if rest[0] == "class_path" else {"dataset": inner}
    if inner is None or (place == "model" and isinstance(inner, str) and rest[0] == "class_path"):
        inner = {}
    if not isinstance(inner, Mapping):
        raise ConfigurationError(".".join((place, *rest)), f"{place} is {shown(inner)}, which has no keys.")
    values[first] = inner = dict(inner)
    if "class_path" in inner and rest[0] not in ("class_path", "init_args", "dict_kwargs"):
        rest = ["init_args", *rest]
    put(inner, rest, value, place)


def _whole(keys: Sequence[str], values: Mapping[str, Any], above: str) -> Sequence[str]:
    """Return keys whose first is a whole name, which may hold dots: as one that is there already, or of a task."""
    if above == "tasks":
        return [".".join(keys)]
    if above in _NAMED:
        for count in range(len(keys), 1, -1):
            if (name := ".".join(keys[:count])) in values:
                return [name, *keys[count:]]
    return keys


def _lifted(keys: Sequence[str]) -> Sequence[str]:
    """Return where an argument of the older form's ``model`` stands in the flat one: at the top."""
    below = [*keys[1:]][keys[1:2] == ["init_args"] :]
    return below if below and below[0] in MODEL_KEYS[1:] else keys


def _recipe_of(text: str) -> dict[str, Any]:
    if not text.endswith(".json"):
        return {"rule": text}
    found = parse_json(Path(text).read_bytes(), f"recipe: {text}")
    return dict(found) if isinstance(found, dict) else {"rule": text}


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return one tree with what another says over it; mappings are merged, unless they name another class."""
    found = dict(first)
    for key, value in second.items():
        before = found.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        other = both and value.get("class_path", before.get("class_path")) != before.get("class_path")  # type: ignore[union-attr]
        found[key] = merged(before, value) if both and not other else value  # type: ignore[arg-type]
    return found


def nearest_below(place: str, name: str, known: Collection[str]) -> str:
    """Return the hint that ends a message about an unknown key: the whole nearest key, or all that there are."""
    near = nearest(name, known)
    return near.replace("mean '", f"mean '{place}.") if near else f" Known: {', '.join(known)}."


def require_options(words: Sequence[str], known: Sequence[str], keys_of: Callable[[str], Sequence[str]]) -> None:
    """Raise a `ConfigurationError` with what is near for the first option that no command knows."""
    for word in words:
        first, _, rest = re.split(r"[=+]", word, maxsplit=1)[0].removeprefix("--").partition(".")
        if not word.startswith("--") or first in ("", "help", "debug", "config", "print_config"):
            continue
        if first not in known:
            # As argparse tells it.
            near = nearest(f"--{first}", [f"--{name}" for name in known])
            raise ConfigurationError("", f"unrecognized arguments: {word}{near and f'.{near}'}")
        second = rest.partition(".")[0]
        if first in ("trainer", "learn", "gates") and second not in ("", "help", *(inner := keys_of(first))):
            raise ConfigurationError(f"--{first}.{second}", f"unknown option.{nearest(second, inner)}")


def printed(command: str, values: Mapping[str, Any], others: str) -> str:
    """Return a configuration as a file that reads back as it is, wherever it lies.

    Args:
        command: The command; sections that only others use are left out.
        values: What is read here.
        others: What the parser dumped of its own.
    """
    left_out = () if command == "learn" else ("learn", "gates")
    rest = {key: value for key, value in yaml.safe_load(others).items() if key not in (*OWN_KEYS, *left_out)}
    own = {key: values[key] for key in OWN_KEYS if values.get(key) is not None}
    if isinstance(model := own.get("model"), str) or (isinstance(model, Mapping) and not is_old(model)):
        own = seen_from_here(own, os.getcwd())
    text: str = yaml.safe_dump(own | rest, sort_keys=False, allow_unicode=True, width=120)
    return text
