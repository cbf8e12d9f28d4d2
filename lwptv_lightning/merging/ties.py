"""A tied weight is meant by any of its names: in data statistics, in patterns of layers and in those of rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from glob import escape
from typing import Any, TypeVar

import torch

from lwptv_lightning.engine import DataStatistics
from lwptv_lightning.layers import Layers
from lwptv_lightning.modifiers import Modifier
from lwptv_lightning.registry import matches
from lwptv_lightning.rules import MergeRule
from lwptv_lightning.task_vectors import TaskVectors

Value = TypeVar("Value")
Holder = TypeVar("Holder", bound="MergeRule[Any] | Modifier")


def data_by_first_name(data: DataStatistics, vectors: TaskVectors) -> DataStatistics:
    """Return what was collected on data with that of tied weights under the name under which they are merged.

    What stands under several of a tensor's names is added up, unless it is the same.
    """
    if not vectors.tied:
        return data
    joined = {task: dict(tensors) for task, tensors in data.items()}
    for other, first in vectors.tied.items():
        for tensors in joined.values():
            found, own = (_taken(tensors, name) for name in (other, first))
            both = found is not None and own is not None and not torch.equal(found, own)
            total = found + own if both else found if own is None else own
            if total is not None:
                tensors[first] = total
    return joined


def _taken(tensors: dict[str, Any], name: str) -> Any:
    """Take out a tensor's statistics, which may stand under the name of its module."""
    return next((tensors.pop(key) for key in (name, name.removesuffix(".weight")) if key in tensors), None)


def further_names(vectors: TaskVectors, layers: Layers) -> dict[str, str]:
    """Return what else a layer with a tied weight may be called: by the weight's other names, or by their modules."""
    found: dict[str, str] = {}
    for other, first in vectors.tied.items():
        for name in (other, other.rpartition(".")[0]):
            found.setdefault(name, layers[layers.index_of(first)].name)
    return {name: layer for name, layer in found.items() if name not in layers.names}


def patterns_of_layers(patterns: Sequence[str], layers: Layers, further: Mapping[str, str]) -> list[str]:
    """Return patterns of layers' names; one that matches none of them means the layers with such a further name."""
    found = []
    for pattern in patterns:
        meant = [escape(layer) for name, layer in further.items() if matches(name, [pattern])]
        found += meant if meant and not any(matches(name, [pattern]) for name in layers.names) else [pattern]
    return found


def by_first_names(holder: Holder, tied: Mapping[str, str]) -> Holder:
    """Return a rule or modifier whose patterns of names match a tied weight's first name where they match another."""
    changes: dict[str, Any] = {}
    for field in fields(holder) if tied else ():  # type: ignore[arg-type]
        value = getattr(holder, field.name)
        if isinstance(value, MergeRule):  # that a rule holds
            changes[field.name] = by_first_names(value, tied)
        elif isinstance(value, Mapping):
            changes[field.name] = _with_first_names(value, tied)
        elif isinstance(value, tuple) and value and all(isinstance(item, str) for item in value):
            changes[field.name] = tuple(_with_first_names(dict.fromkeys(value), tied))
    return replace(holder, **changes) if changes else holder  # type: ignore[type-var]


def _with_first_names(patterns: Mapping[str, Value], tied: Mapping[str, str]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for pattern, value in patterns.items():
        found.setdefault(pattern, value)
        for other, first in tied.items():
            if matches(other, [pattern]) and not matches(first, [pattern]):
                found.setdefault(escape(first), value)
    return found
