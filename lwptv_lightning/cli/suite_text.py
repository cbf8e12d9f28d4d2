"""The text of a configuration that `lwptv init` writes, and what it says of it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lwptv_lightning.cli.found_sets import FoundSet
from lwptv_lightning.registry import printable, printable_name

if TYPE_CHECKING:
    from lwptv_lightning.cli.found_architecture import FoundModel
    from lwptv_lightning.cli.found_data import FoundData
    from lwptv_lightning.cli.found_models import FoundModels

_PLAIN = re.compile(r"[A-Za-z][\w./-]*")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
_LIBRARIES = ("~", "hf-hub:", "torchvision/", "torch/", "hf/", "hfds/", "hfids/", "tfds/", "wds/")


def suite_text(models: FoundModels, model: FoundModel, data: FoundData, extra: Mapping[str, Any], folder: Path) -> str:
    """Return a commented configuration, whose paths are relative to a folder."""
    lines = [
        "# Written by `lwptv init`. Paths are relative to this file; docs/configuration.md tells every key. Each is an",
        "# option, too: lwptv validate --config suite.yaml --recipe.ratio 0.25",
        f"model: {_value(model.model)} # {printable(model.why)}",
    ]
    if model.arguments:
        lines.append(f"model_arguments: {_value(model.arguments)}")
    lines += [f"{key}: {_value(value)}" for key, value in model.others.items()]
    lines += ["", f"base: {_path(models.base, folder)} # {printable(models.why)}", "tasks:"]
    lines += [f"  {_value(task)}: {_path(path, folder)}" for task, path in models.tasks.items()]
    lines += [
        f"# left out: {printable(os.path.relpath(path, folder))}: {printable(why)}"
        for path, why in models.left_out.items()
    ]
    lines += _heads(data, extra, folder)
    lines += _data(model, data, folder)
    lines += [
        "",
        "# A rule, its coefficient and the fraction of layers to prune: docs/recipe.md. `lwptv tune` finds one.",
        "recipe: {rule: task_arithmetic, scale: 0.3, ratio: 0.5}",
        "",
        "trainer:",
        "  accelerator: auto",
        "  logger: false",
    ]
    return "\n".join(lines) + "\n"


def _heads(data: FoundData, extra: Mapping[str, Any], folder: Path) -> list[str]:
    lines = []
    if "exclude" in extra:
        lines += [
            "# Base and tasks have classifiers of one size for classes of their own, which are not merged.",
            f"exclude: {_value(extra['exclude'])}",
        ]
    heads = {**extra.get("heads", {}), **data.heads}
    if heads:
        lines += ["", "# Whose head judges a set: another set's, or a checkpoint's.", "heads:"]
        lines += [
            f"  {_value(name)}: {_path(head, folder) if isinstance(head, Path) else _value(head)}"
            for name, head in heads.items()
        ]
    return lines


def _data(model: FoundModel, data: FoundData, folder: Path) -> list[str]:
    if not data.id and not data.ood:
        none = "# No images were found that fit: name folders with one sub-folder a class."
        return ["", none, *_left_out(data, folder, "id"), *_left_out(data, folder, "ood")]
    lines = ["", "data:"]
    groups = (
        ("id", data.id, "The tasks' own domains, which are reported."),
        ("ood", data.ood, "Domains of no task, also in groups, far/name, each with an average of its own."),
        ("validation", data.validation, "Other samples of the tasks' domains, for choices; never reported."),
    )
    for key, sets, about in groups:
        left_out = _left_out(data, folder, key)
        if sets or left_out:
            lines += [f"  # {about}", f"  {key}:"]
            lines += [f"    {_value(name)}: {_path(each.path, folder)} # {_count(each)}" for name, each in sets.items()]
            lines += left_out
    for key, value in model.data.items():
        lines.append(f"  {key}: {_value(value)}")
    return [*lines, "  batch_size: 64", "  num_workers: 0"]


def _left_out(data: FoundData, folder: Path, key: str) -> list[str]:
    """Return the sets of a domain that could not be taken, as comments."""
    return [
        f"    # {_value(_name(each))}: {_path(each.path, folder)} # left out: {printable(why)}"
        for each, why in data.left_out.values()
        if each.split != "train" and key == ("id" if each.domain == "id" else "ood")
    ]


def _name(data: FoundSet) -> str:
    return printable_name(f"{data.group}/{data.name}" if data.group else data.name)


def _count(data: FoundSet) -> str:
    return f"{len(data.classes)} class{'es' if len(data.classes) != 1 else ''}"


def _path(path: Path, folder: Path) -> str:
    found = os.path.relpath(path.resolve(), folder)
    if found.startswith(_LIBRARIES) or "://" in found:
        found = os.path.join(".", found)
    return _value(found)


def _value(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_value(str(key))}: {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str) and (not _PLAIN.fullmatch(value) or value.lower() in _WORDS):
        text: str = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=10**9)
        return text.strip()
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def said_of(models: FoundModels, model: FoundModel, data: FoundData, out: Path) -> list[str]:
    """Return in a few lines what was found and what was left out."""
    named = model.model if isinstance(model.model, str) else model.model["class_path"]
    lines = [
        f"Model: {named} ({model.why})",
        f"Base: {models.base.name} ({models.why}); tasks: {', '.join(map(printable_name, models.tasks))}",
        f"Sets: {_listed('ID', data.id)}; {_listed('OOD', data.ood)}; {_listed('validation', data.validation)}",
    ]
    if lacking := [task for task in models.tasks if task not in data.id]:
        lines.append(f"No images of {', '.join(map(printable_name, lacking))}: of these tasks nothing is measured.")
    reasons = {str(path): why.removeprefix(f"{path}: ") for path, why in models.left_out.items()}
    reasons |= {path: why for path, (each, why) in data.left_out.items() if each.split != "train"}
    lines += [f"Left out: {printable(os.path.relpath(path))}: {printable(why)}" for path, why in reasons.items()]
    follow = f"lwptv tune --config {out}" if data.id else f"lwptv check --config {out}"
    return [*lines, f"Written to {out}; next: {follow}"]


def _listed(what: str, sets: Mapping[str, FoundSet]) -> str:
    return f"{what} {', '.join(map(printable_name, sets)) or 'none'}"
