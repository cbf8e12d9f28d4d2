"""A file of heads beside a merged model's, which plain timm takes too, and what says how to make them again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from torch import Tensor, nn

from lwptv_lightning.checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointSource,
    open_checkpoint,
    require_safetensors_path,
    write_safetensors,
)
from lwptv_lightning.evaluation.classifiers import Classifiers, Pointwise, classifier_of, place_of
from lwptv_lightning.evaluation.zero_shot import ZeroShotHead
from lwptv_lightning.functional import plain_module
from lwptv_lightning.merging import whole_state
from lwptv_lightning.registry import parse_json, require_known, shown

HEADS_KEY = "lwptv_heads"
"""Where a file's metadata say which heads are in it."""


def heads_path(path: str | Path) -> Path:
    """Return where the heads of a merged model are written: beside its file, or in its folder.

    Example:
        >>> heads_path("out/merged.safetensors").as_posix(), heads_path("out/folder").as_posix()
        ('out/merged.heads.safetensors', 'out/folder/heads.safetensors')
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return path.with_suffix(".heads.safetensors")
    return path / "heads.safetensors"


def describe_head(head: nn.Module, place: tuple[str, ...]) -> dict[str, Any]:
    """Return what `make_head` needs to know besides a head's tensors, as plain values."""
    about = {"in_place_of": list(place), "type": _kind_of(plain_module(head))}
    return about | ({"scale": head.scale} if isinstance(head, ZeroShotHead) else {})


def _kind_of(head: nn.Module) -> str:
    return "Conv2d" if isinstance(head, Pointwise) else type(head).__name__


def make_head(about: Mapping[str, Any], state: Mapping[str, Tensor], model: nn.Module | None, label: str) -> nn.Module:
    """Make a head of its description and its tensors: a classifier like the model's, a zero-shot one or a linear layer.

    Args:
        about: By `describe_head`.
        state: Its tensors, named as by `full_state`.
        model: The architecture; without it a classifier is made that is a linear layer or a 1x1 convolution.
        label: What to call it in messages.

    Raises:
        ValueError: It is of another kind, which the caller must give.
    """
    paths, plain = tuple(about["in_place_of"]), state.keys() <= {"weight", "bias"}
    if about["type"] == ZeroShotHead.__name__:
        weight = next(iter(state.values()))  # under the name of each place
        head: nn.Module = ZeroShotHead(weight, about["scale"])
        head.in_place_of = paths  # type: ignore[assignment]
    elif paths:
        head = classifier_of(model, paths, state, label)
    elif plain and about["type"] == "Linear":
        head = classifier_of(None, ("head",), {f"head.{name}": tensor for name, tensor in state.items()}, label)
        head.in_place_of = ()  # type: ignore[assignment]
    else:
        head = nn.Identity()
    if _kind_of(head) != about["type"] or (isinstance(head, nn.Identity) and state):
        raise ValueError(f"{label} is a {about['type']}, which no file can make again: give heads={{'<set>': module}}.")
    return head


def remake(about: Mapping[str, Any], state: Mapping[str, Tensor], model: nn.Module | None, label: str) -> nn.Module:
    """Make a head of its description and its own state dict, as `make_head` does of a file's tensors."""
    if about["type"] == Classifiers.__name__:
        named = {_part_name(name): tensor for name, tensor in state.items()}
    else:
        starts = [f"{path}." for path in about["in_place_of"]] or [""]
        named = {f"{start}{name}": tensor for start in starts for name, tensor in state.items()}
    return make_head(about, named, model, label)


def full_state(head: nn.Module, place: Sequence[str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a head's state dict under the names that its tensors have in a model in whose place it acts."""
    if isinstance(head, Classifiers):
        return {_part_name(name): tensor for name, tensor in state.items()}
    return {f"{path}.{name}": tensor for path in place for name, tensor in state.items()} if place else dict(state)


def _part_name(name: str) -> str:
    """Return the name in the model of a tensor of `Classifiers`, by its name in their state dict."""
    path, _, rest = name.partition(".")
    return f"{unquote(path)}.{rest}"


def write_heads(
    heads: Mapping[str, nn.Module],
    path: str | Path,
    places: Mapping[str, Sequence[str]] | None = None,
    states: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Path:
    """Write heads to a ``.safetensors`` file, which is whole or absent, and return its path.

    A tensor is named by its set and, after the last ``/``, as in the model in whose place the head acts. So what begins
    with ``svhn/`` is, without that, what a plain timm model of that many classes lacks in a merged file.

    Args:
        heads: Set name to head.
        path: Where to write.
        places: Set name to the paths in whose place its head acts; by default what the heads say themselves.
        states: Set name to its head's state dict, where that is not the head's own.

    Raises:
        ValueError: There are no heads, or a tensor's name holds a ``/``.
    """
    require_safetensors_path(path)
    if not heads:
        raise ValueError(f"{path}: there are no heads to write, as the model itself gives the logits.")
    tensors, about = {}, {}
    for name, head in heads.items():
        own_place = place_of(head) if places is None else tuple(places[name])
        about[name] = describe_head(head, own_place)
        state = whole_state(head) if states is None else states[name]
        for tensor, value in full_state(head, own_place, state).items():
            if "/" in tensor:
                raise ValueError(
                    f"the head of {name!r}: a tensor's name may hold no '/' in a file, as {tensor!r} does."
                )
            tensors[f"{name}/{tensor}"] = value
    return write_safetensors(tensors, path, {"format": "pt", HEADS_KEY: json.dumps(about)})


def read_heads(
    path: CheckpointSource, model: nn.Module | None = None, modules: Mapping[str, nn.Module] | None = None
) -> dict[str, nn.Module]:
    """Return the heads of a file that `write_heads` wrote.

    Args:
        path: The file, opened or not.
        model: The architecture, for classifiers that are no linear layers.
        modules: Set name to a module of its head's kind, for heads that no file can make again.

    Raises:
        CheckpointError: It is no such file.
        ValueError: A head must be given.
    """
    opened = open_checkpoint(path, prefix="")
    if HEADS_KEY not in opened.metadata:
        raise CheckpointError(f"{opened.source}: this is no file of heads, as save_merged(..., heads=True) writes.")
    about = _described(opened)
    found = {}
    for name in modules or ():
        require_known(f"head in {opened.source}:", name, about)
    for name, entry in about.items():
        own = {key.rpartition("/")[2]: key for key in opened.names if key.rpartition("/")[0] == name}
        state = {key: opened.read(stored).clone() for key, stored in own.items()}
        label = f"{opened.source}: the head of {name!r}"
        if modules is not None and name in modules:
            found[name] = _loaded(modules[name], state, tuple(entry["in_place_of"]), label)
        else:
            found[name] = make_head(entry, state, model, label)
    return found


def _described(opened: Checkpoint) -> dict[str, dict[str, Any]]:
    """Return set name to description of a file's heads; a `CheckpointError` where it is broken."""
    label = f"{opened.source}: {HEADS_KEY}"
    try:
        about: dict[str, dict[str, Any]] = parse_json(opened.metadata[HEADS_KEY], label)
        for name, entry in about.items():
            places, scale, kind = entry["in_place_of"], entry.get("scale", 1.0), entry["type"]
            is_list = isinstance(places, list) and all(isinstance(place, str) for place in places)
            has_tensors = any(tensor.rpartition("/")[0] == name for tensor in opened.names) or "scale" not in entry
            if not (is_list and has_tensors and isinstance(kind, str) and isinstance(scale, int | float)):
                raise TypeError(f"{name!r} is {shown(entry)}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{label} is broken ({error}).") from error
    return about


def is_heads_file(opened: Checkpoint) -> bool:
    """Tell whether a checkpoint is a file of heads."""
    return HEADS_KEY in opened.metadata


def _loaded(head: nn.Module, state: Mapping[str, Tensor], place: tuple[str, ...], label: str) -> nn.Module:
    own = full_state(head, place, head.state_dict())
    shapes, expected = ({name: tuple(value.shape) for name, value in each.items()} for each in (state, own))
    if shapes != expected:
        raise CheckpointError(f"{label} has tensors {shapes}; the given {type(head).__name__} has {expected}.")
    for name, value in own.items():
        value.copy_(state[name])
    head.in_place_of = place  # type: ignore[assignment]
    return head
