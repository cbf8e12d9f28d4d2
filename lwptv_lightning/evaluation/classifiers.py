"""Heads that are checkpoints' own classifiers, made like the one that an architecture has there."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lwptv_lightning.checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointSource,
    TensorHeader,
    compare_headers,
    is_adapter,
    is_task_vector,
    match_names,
    open_checkpoint,
    some_of,
)
from lwptv_lightning.functional import plain_module, plain_name, plain_state, uncompile_
from lwptv_lightning.registry import nearest, require_kind, require_texts, shown
from lwptv_lightning.task_vectors import output_paths

_SIZES = {nn.Linear: "out_features", _ConvNd: "out_channels"}
"""What layers say of their weight's first dimension."""


class Pointwise(nn.Conv2d):
    """A classifier that is a 1x1 convolution, of maps ``(B, C, 1, 1)`` as the model has them or of rows ``(B, C)``."""

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(B, classes, 1, 1)`` of maps, and ``(B, classes)`` of rows."""
        return (
            super().forward(features[..., None, None]).flatten(1) if features.ndim == 2 else super().forward(features)
        )


class Classifiers(nn.Module):
    """A task's several classifiers, such as those of a distilled model, by their paths in the model.

    They act only in the model, each in its own place.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for path, part in parts.items():
            self._modules[path.replace(".", "%2E")] = part

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The classifiers by their paths."""
        return {unquote(name): part for name, part in self.named_children()}

    def forward(self, features: object) -> Tensor:  # noqa: D102 (it has none)
        raise TypeError(f"several classifiers act in the model alone, at {some_of(self.parts)}")


def heads_from(
    checkpoints: Mapping[str, CheckpointSource], model: nn.Module, *, classifier: str | Sequence[str] = ()
) -> dict[str, nn.Module]:
    """Return the classifiers of checkpoints as heads, which act in the place of a model's own classifier.

    Each is of the model's own kind: a linear layer, a 1x1 convolution, norms and weights in one, or several classifiers
    where a distilled model has them. Given to a `MergeModule`, it acts on what the checkpoint's own forward gives its
    classifier. By itself it takes the same: of most timm models what ``forward_head(..., pre_logits=True)`` returns.

    Args:
        checkpoints: Set name to a checkpoint of the model's architecture with any number of classes: all that
            `lwptv_lightning.open_checkpoint` opens, also the classifier alone.
        model: The architecture, of timm, torchvision, transformers or any other; its weights do not matter.
        classifier: The paths of the model's classifier, where they cannot be known.

    Returns:
        Set name to head, on the CPU, in the dtype of the model's classifier.

    Raises:
        CheckpointError: A checkpoint has no such classifier, one of other features, or is of another architecture.
        ValueError: It cannot be known which part of the model is its classifier.

    Example:
        >>> model = nn.ModuleDict({"layer": nn.Linear(2, 4), "fc": nn.Linear(4, 10)})
        >>> tuned = nn.ModuleDict({"layer": nn.Linear(2, 4), "fc": nn.Linear(4, 3)})
        >>> heads_from({"a": tuned}, model)
        {'a': Linear(in_features=4, out_features=3, bias=True)}
    """
    require_kind("checkpoints", checkpoints, Mapping, "a mapping of set names to checkpoints")
    require_kind("model", model, nn.Module, "a module")
    paths = _paths_of(model, classifier)
    wanted = TensorHeader.of_all(plain_state(plain_module(model)))
    return {str(name): _head_from(str(name), source, model, wanted, paths) for name, source in checkpoints.items()}


def place_of(head: nn.Module) -> tuple[str, ...]:
    """Return the paths in whose place a head acts; none where it acts on what the model returns.

    A head says so by an attribute ``in_place_of``, the path of a module or several.
    """
    place = getattr(head, "in_place_of", ())
    return (place,) if isinstance(place, str) else tuple(place)


def parts_of(head: nn.Module, paths: Sequence[str]) -> dict[str, nn.Module]:
    """Return what stands in each of some places: a head's own parts, or the head in all of them."""
    return head.parts if isinstance(head, Classifiers) else dict.fromkeys(paths, head)


def classifier_of(model: nn.Module | None, paths: Sequence[str], state: Mapping[str, Tensor], label: str) -> nn.Module:
    """Return the head that a model's classifier is with other tensors, also of another number of classes.

    Args:
        model: The architecture; without it, linear layers and 1x1 convolutions are made.
        paths: Of its classifier.
        state: Full name to tensor.
        label: What the tensors are of, for messages.

    Raises:
        CheckpointError: They do not make a classifier of the model's features.
    """
    modules: dict[str, nn.Module] = dict.fromkeys(paths, nn.Identity())
    if model is not None:
        modules = {plain_name(path): module for path, module in plain_module(model).named_modules()}
    parts = {}
    for path in paths:
        own = {name.removeprefix(f"{path}."): tensor for name, tensor in state.items() if name.startswith(f"{path}.")}
        if path not in modules:
            raise CheckpointError(
                f"{label}: {type(plain_module(model or nn.Identity())).__name__} has no module {path!r}; build it with "
                "any number of classes, or name its classifier."
            )
        parts[path] = _like(modules[path], own, path, label)
    head = next(iter(parts.values())) if len(parts) == 1 else Classifiers(parts)
    head.in_place_of = tuple(paths)  # type: ignore[assignment]
    return head


def _paths_of(model: nn.Module, classifier: str | Sequence[str]) -> tuple[str, ...]:
    given = (classifier,) if isinstance(classifier, str) else require_texts("classifier", classifier, "module paths")
    if paths := given or output_paths(model):
        return paths
    raise ValueError(
        f"it cannot be known which part of {type(plain_module(model)).__name__} is its classifier: name it, "
        f"classifier='...', one of {some_of(plain_name(name) for name, _ in plain_module(model).named_children())}"
    )


def _head_from(
    name: str, source: CheckpointSource, model: nn.Module, wanted: Mapping[str, TensorHeader], paths: Sequence[str]
) -> nn.Module:
    opened = open_checkpoint(source)
    label = f"the head of {name!r} ({opened.source})"
    for is_difference, what in ((is_adapter, "a LoRA adapter"), (is_task_vector, "a task vector")):
        if is_difference(opened):
            raise CheckpointError(
                f"{label}: this is {what}, which has no whole classifier by itself; open it with its base by "
                "TaskVectors.open(..., model=...), whose tasks have their classifiers as heads."
            )
    found = _named(opened, model, wanted, paths)
    starts = tuple(f"{path}." for path in paths)
    own = [each for each in found.names if each.startswith(starts)]
    lacking = [path for path in paths if not any(each.startswith(f"{path}.") for each in own)]
    if lacking:
        raise CheckpointError(
            f"{label} has no classifier {lacking[0]!r}, as {type(plain_module(model)).__name__} has it"
            f"{nearest(lacking[0], found.names)} It has {some_of(opened.names, 4)}"
        )
    compared = compare_headers(wanted, found.headers, [f"{path}.*" for path in paths])
    if compared.matched and (amiss := compared.missing + compared.reshaped):
        shapes = [getattr(headers.get(amiss[0]), "shape", None) for headers in (found.headers, wanted)]
        what = "no" if shapes[0] is None else f"{shapes[0]} as the shape of"
        raise CheckpointError(
            f"{label} is of another architecture than {type(plain_module(model)).__name__}: it has {what} "
            f"{shown(amiss[0])}, expected {shapes[1]}."
        )
    if not compared.matched and len(own) < len(found.names) and compared.reshaped + compared.extra:
        raise CheckpointError(f"{label} is of another architecture: {some_of(compared.reshaped + compared.extra)}")
    return classifier_of(model, paths, {each: found.read(each) for each in own}, label)


def _named(
    opened: Checkpoint, model: nn.Module, wanted: Mapping[str, TensorHeader], paths: Sequence[str]
) -> Checkpoint:
    """Bring a checkpoint to a model's names, be it a whole model or the state dict of a classifier by itself."""
    if len(paths) == 1 and {f"{paths[0]}.{name}" for name in opened.names} <= {*wanted, *_of_a_layer(paths[0])}:
        return opened.renamed({f"{paths[0]}.{name}": name for name in opened.names})
    return match_names(opened, wanted, model)


def _of_a_layer(path: str) -> set[str]:
    return {f"{path}.weight", f"{path}.bias"}


def _like(template: nn.Module, state: Mapping[str, Tensor], path: str, label: str) -> nn.Module:
    """Return a module like a model's classifier with other tensors; where that was removed, a linear one."""
    template = plain_module(template)
    if not state and plain_state(template):
        raise CheckpointError(
            f"{label}: its checkpoint has none, expected {some_of(f'{path}.{name}' for name in plain_state(template))} "
            "Give this set a head: heads={...}."
        )
    is_removed = isinstance(template, nn.Identity)
    is_layer = {"weight"} <= state.keys() <= {"weight", "bias"}
    if is_layer and (is_removed or type(template).forward is nn.Linear.forward or _is_pointwise(template)):
        return _layer(template, state, path, label)
    if is_removed:
        raise CheckpointError(
            f"{label}: there is no classifier at {path!r} to make one with {some_of(state, 4)[:-1]} of; give the "
            "model with any number of classes."
        )
    expected = plain_state(template)
    if expected.keys() != state.keys():
        raise CheckpointError(
            f"{label}: the classifier {path!r} has {some_of(sorted(state))} Expected {some_of(sorted(expected))}"
        )
    module = uncompile_(copy.deepcopy(template))
    for name, tensor in state.items():
        _put_(module, name, tensor, f"{label}: {path}.{name}")
    if left := [name for name, value in (*module.named_parameters(), *module.named_buffers()) if value.is_meta]:
        raise CheckpointError(f"{label}: {path}.{left[0]} is on the meta device, and no checkpoint holds it.")
    return module


def _is_pointwise(layer: nn.Module) -> bool:
    options = (getattr(layer, name, None) for name in ("kernel_size", "stride", "padding", "groups"))
    return type(layer) is nn.Conv2d and tuple(options) == ((1, 1), (1, 1), (0, 0), 1)


def _layer(template: nn.Module, state: Mapping[str, Tensor], path: str, label: str) -> nn.Module:
    """Return a linear layer, or a 1x1 convolution where the weight is that of one."""
    weight, old = state["weight"], getattr(template, "weight", None)
    is_pointwise = weight.ndim == 4 and weight.shape[2:] == (1, 1)
    if weight.ndim != (2 + 2 * is_pointwise if old is None else old.ndim):
        raise CheckpointError(
            f"{label}: the classifier {path!r} has {some_of(f'{n} {tuple(t.shape)}' for n, t in state.items())} "
            "Expected a weight (classes, features) and a bias."
        )
    if old is not None and weight.shape[1] != old.shape[1]:
        raise CheckpointError(
            f"{label}: {path}.weight has shape {tuple(weight.shape)}, and the model's features are {old.shape[1]}."
        )
    options: dict[str, Any] = {"bias": "bias" in state, "dtype": weight.dtype if old is None else old.dtype}
    classes, features = weight.shape[:2]
    made = Pointwise(features, classes, 1, **options) if is_pointwise else nn.Linear(features, classes, **options)
    made.load_state_dict(state)
    return made


def _put_(module: nn.Module, name: str, tensor: Tensor, label: str) -> None:
    """Put a tensor in the place of a module's own, which may differ in the number of classes, its first dimension."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    old: Tensor = getattr(owner, leaf)
    if old.shape[1:] != tensor.shape[1:] or old.ndim != tensor.ndim:
        raise CheckpointError(f"{label} has shape {tuple(tensor.shape)}, expected {tuple(old.shape)} but for classes.")
    new = tensor.detach().to(old.dtype, copy=True)
    if isinstance(old, nn.Parameter):
        owner._parameters[leaf] = nn.Parameter(new, requires_grad=old.requires_grad)
    else:
        owner._buffers[leaf] = new
    for kind, attribute in _SIZES.items():
        if leaf == "weight" and isinstance(owner, kind):
            setattr(owner, attribute, len(new))
