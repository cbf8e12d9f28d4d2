"""``--config`` of the commands that take checkpoints: base, tasks, model and recipe as a configuration says them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lwptv_lightning.cli.checked import require_checkpoint, require_recipe
from lwptv_lightning.cli.configuration import OWN_KEYS, read_arguments
from lwptv_lightning.cli.ending import WrongArgumentsError
from lwptv_lightning.registry import ConfigurationError, nearest, shown

_KEPT = ("exclude", "prefix", "resize_position_embedding")
_WHOLE = ("base", "tasks", "model_arguments")
"""Keys that are options as a whole, too; others, such as ``--recipe``, are the commands' own."""


class _Config(argparse.Action):
    """Where a configuration says what the positional arguments do, these need not be there."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, values)
        for action in parser._get_positional_actions():
            if action.dest in ("base", "tasks", "expert"):
                action.required = False


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``."""
    parser.add_argument(
        "--config",
        action=_Config,
        metavar="FILE",
        help="a file that says base, tasks, model and recipe where no argument does; --recipe.ratio goes over it",
    )


def part_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command's words, and those that go over what its ``--config`` says, ``--recipe.ratio 0.25``.

    Example:
        >>> part_overrides(["merge", "--config", "a.yaml", "--recipe.ratio", "0.25", "--out=x"])
        (['merge', '--config', 'a.yaml', '--out=x'], ['--recipe.ratio', '0.25'])
    """
    rest, overrides = list(words), list[str]()
    if not any(word == "--config" or word.startswith("--config=") for word in rest):
        return rest, overrides
    own, rest = rest, []
    while own:
        word = own.pop(0)
        name, equals, _ = word.partition("=")
        key, dot, _ = name.removeprefix("--").replace("-", "_").partition(".")
        if name.startswith("--") and (key in OWN_KEYS if dot else key in _WHOLE):
            overrides += [word, *([] if equals else own[:1])]
            own = own if equals else own[1:]
        else:
            rest.append(word)
    return rest, overrides


def fill_in(options: argparse.Namespace) -> None:
    """Set what the arguments leave open to what a configuration says; without ``--config`` all stays.

    Raises:
        WrongArgumentsError: The configuration cannot be taken.
    """
    if (path := getattr(options, "config", None)) is None:
        return
    try:
        _fill_in(options, _flat(read_arguments(["--config", path, *options.overrides]).values))
    except ConfigurationError as error:
        raise WrongArgumentsError(str(error)) from error


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return what a configuration of either form says of checkpoints, at the top."""
    from lwptv_lightning.cli.made import in_one_form, is_whole

    values = in_one_form(values)
    if is_whole(values):
        return dict(values["model"].get("init_args") or {})
    return values


def _fill_in(options: argparse.Namespace, values: Mapping[str, Any]) -> None:
    named = values.get("tasks") or {}
    if not isinstance(named, Mapping):
        raise ConfigurationError("tasks", f"expected a mapping of names, {{name: ...}}, not {shown(named)}.")
    if hasattr(options, "expert"):
        _one_task(options, named)
    else:
        if options.base is not None and "=" in options.base and not Path(options.base).exists():
            options.base, options.tasks = None, [options.base, *(options.tasks or ())]
        options.tasks = options.tasks or [f"{task}={path}" for task, path in named.items()]
        if not options.tasks:
            raise ConfigurationError("tasks", "it is required: a mapping of each task's name to its checkpoint.")
        for task, path in named.items():
            if f"{task}={path}" in options.tasks:
                require_checkpoint(f"tasks.{task}", path)
    if options.base is None:
        if values.get("base") is None:
            raise ConfigurationError("base", "it is required: the checkpoint that all were fine-tuned from.")
        require_checkpoint("base", values["base"])
        options.base = values["base"]
    for name in _KEPT:
        if hasattr(options, name) and not getattr(options, name) and values.get(name):
            setattr(options, name, values[name])
    if options.model is None and values.get("model") is not None:
        options.model = values["model"]
        options.model_option = [
            f"{name}={json.dumps(value)}" for name, value in (values.get("model_arguments") or {}).items()
        ]
    if values.get("recipe") is not None:
        require_recipe("recipe", values["recipe"])
    options.configured_recipe = values.get("recipe")


def _one_task(options: argparse.Namespace, named: Mapping[str, Any]) -> None:
    """Find the one expert that is meant: a task's name or a checkpoint, which stands in the base's place alone."""
    if options.expert is None:
        options.base, options.expert = None, options.base
    if options.expert is None:
        if len(named) != 1:
            raise ConfigurationError("", f"say which task is meant, one of {', '.join(named) or 'none'}.")
        options.expert = next(iter(named))
    if options.expert in named:
        options.expert = named[options.expert]
    elif not Path(options.expert).exists():
        raise ConfigurationError(
            "", f"{shown(options.expert)} is neither a task nor a checkpoint.{nearest(options.expert, named)}"
        )
