"""Which part of a model tells its task's classes apart: what experts of one backbone may each have of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from lwptv_lightning.checkpoints import Checkpoint, HeaderComparison, TensorHeader, compare_headers, stated_head
from lwptv_lightning.functional import plain_module, plain_name
from lwptv_lightning.registry import matcher

_NAMES = ("head", "heads", "fc", "classifier", "classification_head", "score", "last_linear")
"""What torchvision, transformers and most others call it, at the top of a model."""


def classifier_paths(model: nn.Module | None) -> tuple[str, ...]:
    """Return the module paths of a timm model's classifier, from its ``pretrained_cfg``."""
    paths = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (paths,) if isinstance(paths, str) else tuple(paths)


def output_paths(model: nn.Module | None) -> tuple[str, ...]:
    """Return the module paths of a model's classifier: timm's, what stands beside a backbone, or one by its name.

    Args:
        model: One of timm; of transformers, where all counts that has weights and is not its ``base_model_prefix``; or
            any other whose classifier stands at the top under a usual name.

    Example:
        >>> output_paths(nn.ModuleDict({"layer": nn.Linear(2, 3), "fc": nn.Linear(3, 2)}))
        ('fc',)
    """
    if model is None or (paths := classifier_paths(model)):
        return () if model is None else paths
    model = plain_module(model)
    children = {plain_name(name): plain_module(child) for name, child in model.named_children()}
    backbone = getattr(model, "base_model_prefix", None)
    if isinstance(backbone, str) and children.keys() > {backbone}:
        words = getattr(model, "get_output_embeddings", lambda: None)()  # of a language model, which are no classes
        beside = {name: child for name, child in children.items() if name != backbone and child is not words}
        return tuple(name for name, child in beside.items() if any(True for _ in child.parameters()))
    found = tuple(name for name in _NAMES if name in children)
    return found if len(found) == 1 else ()


def is_classifiers(name: str, header: TensorHeader, base: TensorHeader) -> bool:
    """Whether a tensor seems one of a classifier for other classes than the base's: by its name and its two shapes.

    Example:
        >>> import torch
        >>> three, two = (TensorHeader((classes, 8), torch.float32) for classes in (3, 2))
        >>> is_classifiers("model.fc.weight", three, two), is_classifiers("block.0.weight", three, two)
        (True, False)
    """
    differs_in_classes = header.shape[1:] == base.shape[1:] and len(header.shape) == len(base.shape) > 0
    return differs_in_classes and not {*name.split(".")[:-1]}.isdisjoint(_NAMES)


def own_classifiers(
    model: nn.Module | None,
    base: Mapping[str, TensorHeader],
    others: Iterable[tuple[Mapping[str, TensorHeader], Sequence[str]]],
    exclude: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return the paths of classifiers that are not the same in all checkpoints, so that each task has its own.

    Of a timm model these are those of its configuration in which anything differs. Of another one it is each linear
    layer or convolution that differs in the number of its outputs alone, as no layer before another one can; and what
    `output_paths` finds, where one checkpoint has all of it and the other nothing.

    Args:
        model: The architecture.
        base: The base's tensors.
        others: Of each task its tensors, and those of them that are differences from another base.
        exclude: Globs of what is not looked at.
    """
    if model is None:
        return ()
    is_excluded = matcher(exclude)
    found: list[str] = []
    for headers, foreign in others:
        compared = compare_headers(base, headers, exclude)
        differing = [*compared.missing, *compared.extra, *compared.reshaped]
        differing += [name for name in foreign if not is_excluded(name)]
        if paths := classifier_paths(model):
            found += [path for path in paths if any(name.startswith(f"{path}.") for name in differing)]
        else:
            found += _of_other_sizes(model, base, headers, compared)
            found += [path for path in output_paths(model) if _is_in_one_alone(path, base, headers, compared)]
    return tuple(dict.fromkeys(found))


def stated_classifiers(
    base: Checkpoint,
    others: Iterable[tuple[Mapping[str, TensorHeader], Sequence[str]]],
    exclude: Sequence[str] = (),
) -> tuple[str, ...]:
    """Do the same without a model, by the configuration beside the base.

    timm's names the classifier. Of transformers' it is the layers that differ in the number of their outputs alone,
    which in the base are the classes that the configuration says.
    """
    stated, found = stated_head(base), list[str]()
    is_excluded = matcher(exclude)
    for headers, foreign in others if stated.paths or stated.classes is not None else ():
        compared = compare_headers(base.headers, headers, exclude)
        differing = [*compared.missing, *compared.extra, *compared.reshaped]
        differing += [name for name in foreign if not is_excluded(name)]
        found += [path for path in stated.paths if any(name.startswith(f"{path}.") for name in differing)]
        if all(_is_of_classes(stated.classes, base.headers.get(name), headers.get(name)) for name in differing):
            found += [name.rpartition(".")[0] for name in differing]
    return tuple(dict.fromkeys(found))


def _is_of_classes(classes: int | None, ours: TensorHeader | None, theirs: TensorHeader | None) -> bool:
    """Tell whether a tensor of two checkpoints differs in the number of classes alone."""
    if classes is None or ours is None or theirs is None or not ours.shape:
        return False
    return ours.shape[0] == classes and ours.shape[1:] == theirs.shape[1:]


def _of_other_sizes(
    model: nn.Module, base: Mapping[str, TensorHeader], other: Mapping[str, TensorHeader], compared: HeaderComparison
) -> list[str]:
    """Return the layers that differ in the number of their outputs alone."""
    modules = {plain_name(path): plain_module(module) for path, module in model.named_modules()}
    named = tuple(f"{path}." for path in output_paths(model))
    found = []
    for name in compared.reshaped:
        path = name.rpartition(".")[0].partition(".parametrizations.")[0]  # such as a weight norm's
        is_output = isinstance(modules.get(path), nn.Linear | _ConvNd) or name.startswith(named)
        if not (is_output and base[name].shape and base[name].shape[1:] == other[name].shape[1:]):
            return []  # something else is amiss, which is to be told
        found.append(path)
    return found


def _is_in_one_alone(path: str, base: Collection[str], other: Collection[str], compared: HeaderComparison) -> bool:
    """Tell whether one of two checkpoints has tensors under a path and the other has none."""
    absent = {*compared.missing, *compared.extra}
    own = {name for name in (*base, *other) if name.startswith(f"{path}.")}
    return bool(own) and own <= absent
