"""What `MergeModule` takes as heads: modules, checkpoints whose classifiers they are, and names of other sets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from torch import nn

from lwptv_lightning.checkpoints import Checkpoint, CheckpointError, CheckpointSource, open_checkpoint
from lwptv_lightning.evaluation.classifiers import heads_from
from lwptv_lightning.evaluation.heads_file import is_heads_file, read_heads
from lwptv_lightning.registry import nearest, require_kind, require_known

HeadsGiven: TypeAlias = "Mapping[str, nn.Module | CheckpointSource] | str | Path"
"""Set name to a module, a checkpoint or the name of another set; or a file of heads."""


def resolve(
    given: HeadsGiven, known: Collection[str], model: nn.Module, *, paths: Sequence[str] = (), are_all: bool = True
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return the modules that are given or made of checkpoints, and set name to the name of another set.

    A text is the name of another set where there is one with a head, and a checkpoint's path or name otherwise: a file
    that is named as a set is ``./<file>``.

    Args:
        given: As for `MergeModule`.
        known: Sets that have a head besides.
        model: The architecture of the checkpoints.
        paths: Of its classifier, where they are known.
        are_all: Whether no other sets will come, so that a text that is neither is refused.

    Raises:
        TypeError: A head is none of these.
        ValueError: A text is neither, or names go round in a circle.
    """
    if isinstance(given, str | Path):
        return read_heads(given, model), {}
    require_kind("heads", given, Mapping, "a mapping of set names to heads, or a file of heads")
    modules: dict[str, nn.Module] = {}
    aliases: dict[str, str] = {}
    for name, value in given.items():
        require_kind("a head's name", name, str, "a text")
        is_set = isinstance(value, str) and value in {*known, *given}
        is_to_come = isinstance(value, str) and not are_all and not _exists(value)
        if isinstance(value, nn.Module):
            modules[name] = value
        elif isinstance(value, str) and (is_set or is_to_come) and value != name:
            aliases[name] = value
        elif value == name and name in known:
            continue  # its own one
        elif isinstance(value, str | Path | Mapping | Checkpoint):
            modules[name] = _of_checkpoint(name, value, model, paths, {*known, *given} - {name})
        else:
            raise TypeError(
                f"the head of {name!r} must be a module, a checkpoint or the name of another set, not a "
                f"{type(value).__name__}."
            )
    return modules, aliases


def _of_checkpoint(
    name: str, source: CheckpointSource, model: nn.Module, paths: Sequence[str], sets: Collection[str]
) -> nn.Module:
    try:
        opened = open_checkpoint(source)
    except FileNotFoundError as error:
        raise ValueError(
            f"the head of {name!r} is {str(source)!r}, which is neither another set with a head nor a checkpoint: "
            f"there is no such file{nearest(str(source), sets)}"
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"the head of {name!r}: {error}") from error
    if not is_heads_file(opened):
        return heads_from({name: opened}, model, classifier=paths)[name]
    found = read_heads(opened, model)
    require_known(f"head in {opened.source}:", name, found)
    return found[name]


def _exists(path: str) -> bool:
    try:
        return "://" in path or path.startswith("hf-hub:") or Path(path).expanduser().exists()
    except OSError:
        return False
