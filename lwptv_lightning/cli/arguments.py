"""What several commands share: options made from declared fields, and the arguments that name checkpoints."""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lwptv_lightning.cli.from_config import add_config
from lwptv_lightning.registry import explain_field

SETTINGS: dict[str, Any] = {"action": "append", "default": [], "metavar": "NAME=VALUE"}
"""How argparse takes texts that `settings` reads."""


def add_fields(parser: argparse._ActionsContainer, declared: type, prefix: str = "") -> None:
    """Add an option for each declared field of a dataclass that words can give; none has a default here."""
    for field in dataclasses.fields(declared):
        if word := field.metadata["word"]:
            action = "append" if isinstance(field.default, tuple) else "store"
            option = _option(prefix + field.name)
            parser.add_argument(option, type=word, action=action, metavar="VALUE", help=explain_field(field))


def given_fields(options: argparse.Namespace, declared: type, prefix: str = "") -> dict[str, Any]:
    """Return the fields for which options were given, checked under the options' names."""
    checked = {}
    for field in dataclasses.fields(declared):
        option = _option(prefix + field.name)
        if (value := getattr(options, option.strip("-").replace("-", "_"), None)) is not None:
            checked[field.name] = field.metadata["check"](option, value)
    return checked


def add_checkpoints(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the base, the tasks and how their tensors are found."""
    base: dict[str, Any] = {} if required else {"nargs": "?"}
    parser.add_argument("base", help="checkpoint of the base model: a file, a folder or hf-hub:owner/model", **base)
    parser.add_argument(
        "tasks",
        nargs="+" if required else "*",
        metavar="NAME=CHECKPOINT",
        help="a task and its checkpoint, LoRA adapter or task vector",
    )
    parser.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="tensors that are not merged")
    parser.add_argument("--ema", action="store_true", default=None, help="take the tasks' averaged weights")
    parser.add_argument(
        "--resize-position-embedding",
        action="store_true",
        help="resample position embeddings of another image size, by timm's functions",
    )
    add_naming(parser)
    add_config(parser)


def add_naming(parser: argparse.ArgumentParser) -> None:
    """Add how the tensors of checkpoints are named."""
    parser.add_argument("--prefix", help="what the wanted names start with in Lightning checkpoints")
    parser.add_argument("--model", metavar="NAME", help="the timm model whose tensor names all checkpoints are given")
    parser.add_argument("--model-option", **SETTINGS, help="an argument of timm.create_model, such as num_classes=0")


def naming_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_naming` asked for, as the functions that open checkpoints take it."""
    if options.model is None:
        if options.model_option:
            raise ValueError("--model-option needs --model.")
        return {"prefix": options.prefix, "model": None}
    own = settings("--model-option", options.model_option)
    if fixed := sorted({"model_name", "pretrained", "checkpoint_path"} & own.keys()):
        raise ValueError(f"--model-option: {fixed[0]} cannot be given, since the weights come from the checkpoints.")
    if isinstance(options.model, Mapping):  # as a configuration has it
        from lwptv_lightning.cli.made import make_model

        return {"prefix": options.prefix, "model": make_model(options.model, own)}
    import timm

    try:
        return {"prefix": options.prefix, "model": timm.create_model(options.model, pretrained=False, **own)}
    except Exception as error:  # an unknown name is a RuntimeError, and what a model makes of its options may be any
        given = f" with --model-option {' '.join(options.model_option)}" if own else ""
        reason = str(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"--model: {reason}{given}") from error


def usable_device(option: str, name: str | None) -> str | None:
    """Return a device's name after a computation on it.

    Raises:
        ValueError: There is no such device here.
    """
    if name is None:
        return None
    from lwptv_lightning.functional import require_usable

    require_usable(option, name)
    return name


def checkpoint_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_checkpoints` asked for besides the base, as the functions that open checkpoints take it."""
    given = {"tasks": pairs("a task", options.tasks), "exclude": options.exclude, "ema": options.ema}
    given["resize_position_embedding"] = options.resize_position_embedding
    return given | naming_options(options)


def settings(what: str, items: Sequence[str]) -> dict[str, Any]:
    """Read ``NAME=VALUE`` texts whose values are JSON or plain words."""

    def value(name: str, text: str) -> Any:
        try:
            return json.loads(text)
        except RecursionError as error:
            raise ValueError(f"{what} {name}: the value is nested too deeply to be read.") from error
        except ValueError:  # no JSON, or a number of too many digits
            return text

    return {name: value(name, text) for name, text in pairs(what, items).items()}


def pairs(what: str, items: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=VALUE`` texts, and refuse other forms and names that come twice."""
    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{what} must be given as NAME=VALUE, not {item!r}.")
        if name in found:
            raise ValueError(f"{what} is given twice: {name!r}.")
        found[name] = value
    return found


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
