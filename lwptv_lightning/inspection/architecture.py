"""Which of timm's models a checkpoint is of, by the names and shapes of its tensors."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

Shapes = Mapping[str, tuple[int, ...]]
_POSITIONS = re.compile(r"(^|\.)(pos_embed|pos_embed_win|relative_position_bias_table|rel_pos_[hw])$")
_UNSTORED = re.compile(r"(num_batches_tracked|relative_position_index|attn_mask|attention_bias_idxs|position_ids)$")
"""Buffers that files may hold or not."""
_TRIED = 4
"""Parameters of other shapes that a model may make in passing, such as of layers that it tries and drops."""


@dataclass(frozen=True)
class Architecture:
    """What a checkpoint was found to be of.

    Attributes:
        names: Timm's models whose tensors have these names and shapes, but for the classifier; none where none has.
        arguments: What else `timm.create_model` needs, such as ``in_chans``.
        classifier: The module paths of their classifier.
        nearest: The model that has the most tensors in common, where none fits.
        misfit: How that one differs, in words.
    """

    names: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    classifier: tuple[str, ...] = ()
    nearest: str = ""
    misfit: str = ""


class _MisfitError(Exception):
    """A model has a parameter of a shape that no tensor has."""


def find_architecture(
    shapes: Shapes, track: Callable[[Iterable[str], int], Iterable[str]] = lambda names, count: names
) -> Architecture:
    """Find the models of timm's registry that a checkpoint fits.

    Each is built on the meta device, and no further than to the first parameters of shapes that no tensor has.

    Args:
        shapes: Tensor name to shape.
        track: Wraps the names that are gone through, such as in a bar of progress, given how many there are.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_vit", num_classes=5)
        >>> find_architecture({name: tuple(value.shape) for name, value in model.state_dict().items()}).names[0]
        'test_vit'
    """
    import timm

    about = {name: timm.get_pretrained_cfg(name) for name in timm.list_models()}
    paths = {name: _paths(getattr(cfg, "classifier", None)) for name, cfg in about.items()}
    firsts = {name: _paths(getattr(cfg, "first_conv", None)) for name, cfg in about.items()}
    able = [name for name, own in firsts.items() if all(f"{path}.weight" in shapes for path in own)]
    found: list[str] = []
    arguments: dict[str, Any] = {}
    for name in track(able, len(able)):
        channels = _channels(shapes, firsts[name])
        more = _fits(name, shapes, paths[name], channels)
        if more is not None and (not found or channels | more == arguments):
            found.append(name)
            arguments = channels | more
    if found:
        found.sort(key=lambda name: (len(name), name))
        return Architecture(tuple(found), arguments, paths[found[0]])
    near = _nearest(shapes, able or list(about), paths)
    if not near:
        return Architecture()
    return Architecture(nearest=near, misfit=_difference(near, shapes, paths[near], _channels(shapes, firsts[near])))


def _paths(classifier: Any) -> tuple[str, ...]:
    return (classifier,) if isinstance(classifier, str) else tuple(classifier or ())


def _channels(shapes: Shapes, first: tuple[str, ...]) -> dict[str, Any]:
    """Return ``in_chans`` where a model's first convolution does not take three; files hold tensors in any order."""
    shape = shapes.get(f"{first[0]}.weight", ()) if first else ()
    return {} if len(shape) != 4 or shape[1] == 3 or shape[1] > 16 else {"in_chans": shape[1]}


def _fits(
    name: str, shapes: Shapes, classifier: tuple[str, ...], arguments: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the further arguments with which a model has these tensors; None where it has not."""
    known = set(shapes.values())
    misfits = 0

    def look(module: nn.Module, own: str, parameter: Any) -> None:
        shape = tuple(parameter.shape) if parameter is not None else None
        if shape is None or shape in known or _POSITIONS.search(own) or 1000 in shape[:1]:
            return
        nonlocal misfits
        misfits += 1
        if misfits > _TRIED:
            raise _MisfitError

    hook = register_module_parameter_registration_hook(look)
    try:
        model = _on_meta(name, arguments)
    except _MisfitError:
        return None
    except Exception:  # a model that needs another library, or a size of its own
        return None
    finally:
        hook.remove()
    return _compared(name, model, shapes, classifier, arguments)


def _on_meta(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    import timm

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a model that may not be meant
        return timm.create_model(name, pretrained=False, **arguments)  # type: ignore[no-any-return]


def _compared(
    name: str, model: nn.Module, shapes: Shapes, classifier: tuple[str, ...], arguments: Mapping[str, Any]
) -> dict[str, Any] | None:
    own = _without(classifier, {each: tuple(value.shape) for each, value in model.state_dict().items()})
    given = _without(classifier, shapes)
    if own.keys() != given.keys():
        return None
    other = [each for each in own if own[each] != given[each]]
    if not other:
        return {}
    size = _image_size(own, given) if all(map(_POSITIONS.search, other)) else None
    if size is None or "img_size" in arguments:
        return None
    return {"img_size": size} if _fits(name, shapes, classifier, {**arguments, "img_size": size}) == {} else None


def _without(classifier: tuple[str, ...], shapes: Shapes) -> dict[str, tuple[int, ...]]:
    starts = tuple(f"{path}." for path in classifier)
    return {
        name: shape
        for name, shape in shapes.items()
        if not (starts and name.startswith(starts)) and not _UNSTORED.search(name)
    }


def _image_size(own: Shapes, given: Shapes) -> int | None:
    """Return the image size that positions are of, where they are those of a square with tokens before them."""
    patch = own.get("patch_embed.proj.weight")
    if patch is None or "pos_embed" not in own or len(own["pos_embed"]) != 3:
        return None
    before = own["pos_embed"][1] - math.isqrt(own["pos_embed"][1]) ** 2
    side = math.isqrt(count) if (count := given["pos_embed"][1] - before) > 0 else 0
    return side * patch[-1] if side and side * side == count else None


def _nearest(shapes: Shapes, able: list[str], paths: Mapping[str, tuple[str, ...]]) -> str:
    """Return the model that shares the most tensors with a checkpoint, among those whose first layer it has."""
    best, most = "", 0.0
    for name in able[:: max(1, len(able) // 12)]:  # one of each kind: to build all would take minutes
        try:
            own = {each: tuple(value.shape) for each, value in _on_meta(name, {}).state_dict().items()}
        except Exception:
            continue
        alike = len(own.keys() & shapes.keys()) + len(own.items() & shapes.items())
        score = alike / (len(own) + len(shapes))
        if score > most:
            best, most = name, score
    return best


def _difference(name: str, shapes: Shapes, classifier: tuple[str, ...], arguments: Mapping[str, Any]) -> str:
    own = _without(
        classifier, {each: tuple(value.shape) for each, value in _on_meta(name, arguments).state_dict().items()}
    )
    given = _without(classifier, shapes)
    for each, shape in own.items():
        if each not in given:
            return f"it has {each!r} too"
        if given[each] != shape:
            return f"its {each!r} has shape {shape}, not {given[each]}"
    extra = next((each for each in given if each not in own), None)
    return f"it has no {extra!r}" if extra else ""
