"""What several commands share: options made from declared fields, and the arguments that name checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from lwptv_lightning.registry import explain_field


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
        value = getattr(options, option.strip("-").replace("-", "_"), None)
        if value is not None:
            checked[field.name] = field.metadata["check"](option, value)
    return checked


def add_checkpoints(parser: argparse.ArgumentParser) -> None:
    """Add the base, the tasks and how their tensors are found."""
    parser.add_argument("base", help="checkpoint of the base model: a file, a folder or hf-hub:owner/model")
    parser.add_argument(
        "tasks",
        nargs="+",
        metavar="NAME=CHECKPOINT",
        help="a task's name and its fine-tuned checkpoint, LoRA adapter or task vector",
    )
    parser.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="tensors that are not merged")
    parser.add_argument("--ema", action="store_true", default=None, help="take the tasks' averaged weights")
    add_naming(parser)


def add_naming(parser: argparse.ArgumentParser) -> None:
    """Add how the tensors of checkpoints are named."""
    parser.add_argument("--prefix", help="what the wanted names start with in Lightning checkpoints")
    parser.add_argument("--model", metavar="NAME", help="the timm model whose tensor names all checkpoints are given")
    parser.add_argument(
        "--model-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of timm.create_model, such as num_classes=0",
    )


def naming_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_naming` asked for, as the functions that open checkpoints take it."""
    given: dict[str, Any] = {"prefix": options.prefix, "model": None}
    if options.model is not None:
        import timm

        try:
            given["model"] = timm.create_model(
                options.model, pretrained=False, **settings("--model-option", options.model_option)
            )
        except RuntimeError as error:  # what timm raises for an unknown name
            raise ValueError(f"--model: {error}") from error
    elif options.model_option:
        raise ValueError("--model-option needs --model.")
    return given


def checkpoint_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_checkpoints` asked for besides the base, as the functions that open checkpoints take it."""
    tasks = pairs("a task", options.tasks)
    return {"tasks": tasks, "exclude": options.exclude, "ema": options.ema, **naming_options(options)}


def settings(what: str, items: Sequence[str]) -> dict[str, Any]:
    """Read ``NAME=VALUE`` texts whose values are JSON or plain words."""
    return {name: _value(text) for name, text in pairs(what, items).items()}


def pairs(what: str, items: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=VALUE`` texts.

    Raises:
        ValueError: A text has another form, or a name comes twice.
    """
    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{what} must be given as NAME=VALUE, not {item!r}.")
        if name in found:
            raise ValueError(f"{what} is given twice: {name!r}.")
        found[name] = value
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
