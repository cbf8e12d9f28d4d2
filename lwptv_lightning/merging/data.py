"""Files of what was collected on data, for the rules that need it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.checkpoints import (
    Checkpoint,
    CheckpointError,
    FunctionReader,
    TensorHeader,
    fingerprint,
    open_checkpoint,
    plain_tensors,
    require_safetensors_path,
    some_of,
    write_safetensors,
)
from lwptv_lightning.engine import DataStatistics
from lwptv_lightning.registry import parse_json, require_kind, require_texts, shown
from lwptv_lightning.rules import MergeRule
from lwptv_lightning.task_vectors import TaskVectors

_KIND = "data_statistics"


def write_data_statistics(data: DataStatistics, path: str | Path) -> Path:
    """Write what was collected on data to a ``.safetensors`` file, and return its path.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_data_statistics({"a/b": {"w": torch.ones(2)}}, f"{folder}/fisher.safetensors")
        ...     read_data_statistics(path)
        {'a/b': {'w': tensor([1., 1.])}}
    """
    require_safetensors_path(path)
    data = plain_data_statistics(data)
    tensors = {f"{number}.{name}": value for number, task in enumerate(data) for name, value in data[task].items()}
    return write_safetensors(tensors, path, {"lwptv_kind": _KIND, "lwptv_tasks": json.dumps(list(data))})


def plain_data_statistics(data: object) -> dict[str, Mapping[str, Tensor]]:
    """Return what was collected on data with plain tensors, which no gradient is computed of.

    Raises:
        TypeError: It does not map task names to tensors by their names.
        CheckpointError: A tensor holds no values that can be read, such as a sparse one.
    """
    require_kind("data (or statistics)", data, Mapping, "a mapping of task names to tensors by name")
    found: dict[str, Mapping[str, Tensor]] = {}
    for task, tensors in dict(data).items() if isinstance(data, Mapping) else ():
        require_kind("a task of data (or statistics)", task, str, "a name")
        require_kind(f"data (or statistics) of task {task!r}", tensors, Mapping, "a mapping of names to tensors")
        if not isinstance(tensors, dict):  # what reads them from a file when they are asked for
            found[task] = tensors
            continue
        for name, tensor in tensors.items():
            require_kind(f"data (or statistics) of task {task!r} for {name!r}", tensor, Tensor, "a tensor")
        found[task] = plain_tensors(tensors, f"data (or statistics) of task {task!r}")
    return found


def fingerprint_of_data(data: DataStatistics, like: str | None = None) -> str:
    """Return a fingerprint of what was collected on data, whatever the order of tasks and tensors.

    Args:
        data: What was collected.
        like: A fingerprint to compare with, by whose algorithm to make it; that of today by default.

    Example:
        >>> import torch
        >>> fingerprint_of_data({"a": {"w": torch.ones(2)}})[:11]
        'b3_a05da8e9'
    """
    named = {json.dumps([task, name]): (task, name) for task, found in data.items() for name in found}

    def read(key: str) -> Tensor:
        task, name = named[key]
        return data[task][name]

    headers = {key: TensorHeader.of(read(key)) for key in named}
    return fingerprint(Checkpoint("data statistics", headers, FunctionReader(read)), like)


def read_data_statistics(path: str | Path) -> dict[str, Mapping[str, Tensor]]:
    """Read what `lwptv_lightning.callbacks.CollectDataStatistics` wrote: task to tensor name to tensor.

    A tensor is read when it is asked for, and the file must stay as it is until then.

    Raises:
        CheckpointError: It is no such file.
    """
    checkpoint = open_checkpoint(path, prefix="")
    if checkpoint.metadata.get("lwptv_kind") != _KIND:
        raise CheckpointError(f"{path}: expected a file of data statistics, as CollectDataStatistics(file=...) writes.")
    try:
        tasks = require_texts("tasks", parse_json(checkpoint.metadata["lwptv_tasks"], "tasks"), "names")
        stored: dict[str, dict[str, str]] = {task: {} for task in tasks}
        for name_in_file in checkpoint.names:
            number, _, name = name_in_file.partition(".")
            stored[tasks[_position(number)]][name] = name_in_file
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path}: a damaged file of data statistics ({error!r}).") from error
    return {task: _StoredStatistics(checkpoint, names) for task, names in stored.items()}


class _StoredStatistics(Mapping[str, Tensor]):
    """The statistics of one task, read from their file when they are asked for."""

    def __init__(self, checkpoint: Checkpoint, stored: Mapping[str, str]) -> None:
        self._checkpoint = checkpoint
        self._stored = stored

    def require_unchanged(self) -> None:
        self._checkpoint.require_unchanged()

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __getitem__(self, name: str) -> Tensor:
        return self._checkpoint.read(self._stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __repr__(self) -> str:
        return repr(dict(self))


def _position(number: str) -> int:
    if not number.isdecimal():
        raise ValueError(f"{number!r} numbers no task")
    return int(number)


def require_data(rule: MergeRule[Any], data: DataStatistics | None, vectors: TaskVectors) -> None:
    """Raise a `ValueError` where what was collected on data is not what a rule needs for these task vectors."""
    if rule.needs and data is None:
        raise ValueError(f"rule {rule.name!r} needs statistics=... or data=..., its {rule.needs} on each task's data.")
    if data is not None and (absent := [name for name in vectors.tasks if name not in data]):
        raise ValueError(
            f"statistics has no entry for task {shown(absent[0])}; it has {some_of(data) if data else 'none.'}"
        )
    if rule.needs == "gram" and data is not None:
        _check_grams(vectors, data)
    if rule.needs == "fisher" and data is not None:
        _check_shapes(vectors, data)


def _check_grams(vectors: TaskVectors, data: DataStatistics) -> None:
    """Raise where what is called a Gram matrix of a layer's inputs is none, or not finite."""
    for task in vectors.tasks:
        for name in vectors.names:
            shape, found = (
                vectors.headers[name].shape,
                data[task].get(name, data[task].get(name.removesuffix(".weight"))),
            )
            if found is None or len(shape) < 2:
                continue
            if found.shape != (shape[1], shape[1]):
                raise ValueError(
                    f"the data statistics of task {task!r} have shape {tuple(found.shape)} for {name!r}, expected "
                    f"{(shape[1], shape[1])}, the inputs' Gram matrix."
                )
            if not torch.isfinite(found).all():
                raise ValueError(f"the data statistics of task {task!r} are NaN or infinite for {name!r}.")


def _check_shapes(vectors: TaskVectors, data: DataStatistics) -> None:
    """Raise where there is not one number for each weight."""
    for task in vectors.tasks:
        for name in vectors.names:
            if name in data[task] and data[task][name].shape != vectors.headers[name].shape:
                raise ValueError(
                    f"the data statistics of task {shown(task)} have shape {tuple(data[task][name].shape)} for "
                    f"{shown(name)}, expected {vectors.headers[name].shape}, one number for each weight."
                )
