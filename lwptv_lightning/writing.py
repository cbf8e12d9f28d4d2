"""Stream weights to safetensors, in one file or in shards; a killed run leaves no half file under a final name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from lwptv_lightning.checkpoints import SAFETENSORS_DTYPES, CheckpointError, TensorHeader
from lwptv_lightning.layers import Layers
from lwptv_lightning.memory import parse_bytes
from lwptv_lightning.merging import prepare_merge
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.task_vectors import TaskVectors

_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}
_SHARD_SIZE = "5GB"


def save_merged(
    vectors: TaskVectors,
    recipe: MergeRecipe,
    path: str | Path,
    layers: Layers | None = None,
    device: str | None = None,
    *,
    max_memory: int | str | None = None,
    max_shard_size: int | str = _SHARD_SIZE,
) -> Path:
    """Merge and write the result as it is made, with the recipe in the file's metadata.

    The merged model is never in memory as a whole.

    Args:
        vectors: The task vectors.
        recipe: Rule, scale and pruning.
        path: Where to write, a ``.safetensors`` file; its folder is made where it does not exist.
        layers: From `trace_layers`; by default made from the tensors' names.
        device: Where to compute.
        max_memory: What the merge may hold in memory besides the mapped files; see `lwptv_lightning.merging.merge`.
        max_shard_size: Bytes, or text such as ``"5GB"``. A larger model is written in shards of at most that size, or
            of one tensor, with an index beside them as transformers names both:
            ``merged-00001-of-00002.safetensors`` and ``merged.safetensors.index.json`` for ``merged.safetensors``.

    Returns:
        What to open: the path, or that of the index.

    Raises:
        ValueError: The path does not end in ``.safetensors``, or a size is none.
        MemoryLimitError: A tensor does not fit into ``max_memory``.

    Example:
        >>> import tempfile
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_merged(vectors, MergeRecipe(), f"{folder}/merged.safetensors").name
        'merged.safetensors'
    """
    require_safetensors_path(path)
    shard_size = parse_bytes("max_shard_size", max_shard_size)
    merge = prepare_merge(vectors, recipe, layers, device, max_memory=max_memory)
    with SafetensorsWriter(path, vectors.headers, metadata_of(vectors, recipe), shard_size) as writer:
        for name, elements, values in merge.pieces():
            writer.write(name, values, elements.start)
    return writer.final


def require_safetensors_path(path: str | Path) -> None:
    """Raise unless a path ends in ``.safetensors``."""
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"the file to write must end in .safetensors, not {str(path)!r}.")


def metadata_of(vectors: TaskVectors, recipe: MergeRecipe) -> dict[str, str]:
    """Return what a merged file says of itself: the recipe as JSON and the tasks."""
    return {"format": "pt", "lwptv_recipe": recipe.to_json(), "lwptv_tasks": ",".join(vectors.tasks)}


def write_safetensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> Path:
    """Write tensors to one file, under a temporary name first.

    Returns:
        The final path.
    """
    headers = {name: TensorHeader.of(tensor) for name, tensor in tensors.items()}
    with SafetensorsWriter(path, headers, metadata) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor.detach().reshape(-1))
    return writer.final


def index_of(path: str | Path) -> Path:
    """Return where the index of shards stands that are written for a path."""
    return Path(f"{path}.index.json")


class SafetensorsWriter:
    """Writes tensors to their places in one or several files, in any order and piece by piece.

    The files have temporary names until the block is left without an error; then they get their final ones, the index
    last, and what another run wrote for the same path is replaced.

    Args:
        path: The file.
        headers: Shape and dtype of all tensors.
        metadata: What the file says of itself.
        shard_size: The most bytes of a shard; one file by default.

    Attributes:
        final: What to open once the block is left.

    Raises:
        CheckpointError: A dtype that the format does not know.
    """

    def __init__(
        self,
        path: str | Path,
        headers: Mapping[str, TensorHeader],
        metadata: Mapping[str, str],
        shard_size: int | None = None,
    ) -> None:
        for name, header in headers.items():
            if header.dtype not in _CODES:
                raise CheckpointError(f"{name!r} is {header.dtype}, which safetensors files cannot hold.")
        self._path = Path(path)
        self._headers = headers
        self._metadata = dict(metadata)
        self._shards = _divide(headers, shard_size)
        self._open: list[BinaryIO] = []
        self._place: dict[str, tuple[BinaryIO, int]] = {}
        self.final = self._path if len(self._shards) == 1 else index_of(self._path)

    def __enter__(self) -> SafetensorsWriter:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            for number, names in enumerate(self._shards):
                self._begin(number, names)
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._discard()

    def write(self, name: str, values: Tensor, start: int = 0) -> None:
        """Write some elements of a flattened tensor, from the element ``start`` on."""
        file, offset = self._place[name]
        file.seek(offset + start * values.dtype.itemsize)
        # Bytes, since numpy does not know every dtype.
        file.write(values.cpu().contiguous().view(torch.uint8).numpy().data)

    def _begin(self, number: int, names: list[str]) -> None:
        """Create a shard's file with its header, in which all places are fixed beforehand."""
        file = self._temporary(number).open("wb")
        self._open.append(file)
        entries: dict[str, object] = {"__metadata__": self._metadata}
        offsets, end = {}, 0
        # Wider elements first, so that each tensor begins at a multiple of its elements' size.
        for name in sorted(names, key=lambda name: -self._headers[name].dtype.itemsize):
            header = self._headers[name]
            offsets[name], end = end, end + header.nbytes
            entries[name] = {
                "dtype": _CODES[header.dtype],
                "shape": list(header.shape),
                "data_offsets": [offsets[name], end],
            }
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        self._place |= {name: (file, 8 + len(text) + offset) for name, offset in offsets.items()}

    def _finish(self) -> None:
        for file in self._open:
            file.close()
        names = [self._path.name]
        if len(self._shards) > 1:
            count = len(self._shards)
            names = [f"{self._path.stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
        for number, name in enumerate(names):
            self._temporary(number).replace(self._path.with_name(name))
        index = index_of(self._path)
        if len(self._shards) == 1:
            index.unlink(missing_ok=True)
            return
        weight_map = {name: file for file, shard in zip(names, self._shards, strict=True) for name in shard}
        total = sum(header.nbytes for header in self._headers.values())
        temporary = self._temporary(len(names))
        temporary.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))
        temporary.replace(index)
        self._path.unlink(missing_ok=True)

    def _discard(self) -> None:
        for file in self._open:
            file.close()
        for number in range(len(self._shards) + 1):
            self._temporary(number).unlink(missing_ok=True)

    def _temporary(self, number: int) -> Path:
        return self._path.with_name(f".{self._path.name}.{os.getpid()}.{number}.tmp")


def _divide(headers: Mapping[str, TensorHeader], shard_size: int | None) -> list[list[str]]:
    """Divide tensors, in order, into shards; a tensor larger than a shard has one to itself."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, header in headers.items():
        if shard_size is not None and shards[-1] and filled + header.nbytes > shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += header.nbytes
    return shards
