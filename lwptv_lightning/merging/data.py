"""Files of what was collected on data, for the rules that need it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lwptv_lightning.checkpoints import CheckpointError, open_checkpoint, require_safetensors_path, write_safetensors
from lwptv_lightning.engine import DataStatistics
from lwptv_lightning.registry import parse_json, require_kind, require_texts

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
    require_data_statistics(data)
    tensors = {f"{number}.{name}": value for number, task in enumerate(data) for name, value in data[task].items()}
    return write_safetensors(tensors, path, {"lwptv_kind": _KIND, "lwptv_tasks": json.dumps(list(data))})


def require_data_statistics(data: object) -> None:
    """Raise a `TypeError` unless something maps task names to tensors by their names."""
    require_kind("data (or statistics)", data, Mapping, "a mapping of task names to tensors by name")
    for task, tensors in dict(data).items() if isinstance(data, Mapping) else ():
        require_kind("a task of data (or statistics)", task, str, "a name")
        require_kind(f"data (or statistics) of task {task!r}", tensors, Mapping, "a mapping of names to tensors")
        for name, tensor in tensors.items():
            require_kind(f"data (or statistics) of task {task!r} for {name!r}", tensor, Tensor, "a tensor")


def read_data_statistics(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """Read what `lwptv_lightning.callbacks.CollectDataStatistics` wrote: task to tensor name to tensor.

    Raises:
        CheckpointError: It is no such file.
    """
    checkpoint = open_checkpoint(path, prefix="")
    if checkpoint.metadata.get("lwptv_kind") != _KIND:
        raise CheckpointError(f"{path}: expected a file of data statistics, as CollectDataStatistics(file=...) writes.")
    try:
        tasks = require_texts("tasks", parse_json(checkpoint.metadata["lwptv_tasks"], "tasks"), "names")
        data: dict[str, dict[str, Tensor]] = {task: {} for task in tasks}
        for stored in checkpoint.names:
            number, _, name = stored.partition(".")
            data[tasks[int(number)]][name] = checkpoint.read(stored)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path}: a damaged file of data statistics ({error!r}).") from error
    return data
