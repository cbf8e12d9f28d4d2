"""Files of what was collected on data, for the rules that need it."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from lwptv_lightning.checkpoints import CheckpointError, open_checkpoint, write_safetensors
from lwptv_lightning.engine import DataStatistics

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
    tensors = {f"{number}.{name}": value for number, task in enumerate(data) for name, value in data[task].items()}
    return write_safetensors(tensors, path, {"lwptv_kind": _KIND, "lwptv_tasks": json.dumps(list(data))})


def read_data_statistics(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """Read what `lwptv_lightning.callbacks.CollectDataStatistics` wrote: task to tensor name to tensor.

    Raises:
        CheckpointError: It is no such file.
    """
    checkpoint = open_checkpoint(path, prefix="")
    if checkpoint.metadata.get("lwptv_kind") != _KIND:
        raise CheckpointError(f"{path}: expected a file of data statistics, as CollectDataStatistics(file=...) writes.")
    try:
        tasks = json.loads(checkpoint.metadata["lwptv_tasks"])
        data: dict[str, dict[str, Tensor]] = {task: {} for task in tasks}
        for stored in checkpoint.names:
            number, _, name = stored.partition(".")
            data[tasks[int(number)]][name] = checkpoint.read(stored)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path}: a damaged file of data statistics ({error!r}).") from error
    return data
