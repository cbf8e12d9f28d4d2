"""Language models of several GB on disk: their shapes, how they are written in shards, and how they are read back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import safe_open
from torch import Tensor

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def model_shapes(layers: int, width: int, *, head: bool = False) -> Shapes:
    """Return the shapes of a language model; with a head, 32 layers of width 4096 have 6.74 billion parameters."""
    vocabulary, hidden = 125 * width // 16, 43 * width // 16  # 32000 and 11008 where the width is 4096
    layer = {
        **dict.fromkeys(("q", "k", "v", "o"), (width, width)),
        **dict.fromkeys(("gate", "up"), (hidden, width)),
        "down": (width, hidden),
        "norm": (width,),
    }
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (vocabulary, width)}
    for number in range(layers):
        shapes |= {f"layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | ({"norm.weight": (width,), "head.weight": (vocabulary, width)} if head else {})


def size_of(shape: Sequence[int]) -> int:
    return math.prod(shape) * torch.bfloat16.itemsize


def total_size(shapes: Shapes) -> int:
    return sum(map(size_of, shapes.values()))


def write_sharded(folder: Path, shapes: Shapes, values: Callable[[str], Tensor], shard_bytes: int) -> Path:
    """Write a bfloat16 model tensor by tensor, in shards with an index, unless it is there.

    Args:
        folder: Where to write.
        shapes: Of the tensors.
        values: Returns a tensor, or its first rows, after which there is a hole in the file; called for each in turn.
        shard_bytes: What a shard may take.

    Returns:
        The index.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return index
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(shapes, shard_bytes))
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        path = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(path, {name: shapes[name] for name in names}, values)
        weight_map |= dict.fromkeys(names, path.name)
    index.write_text(json.dumps({"metadata": {"total_size": total_size(shapes)}, "weight_map": weight_map}))
    return index


def _shards(shapes: Shapes, shard_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + size_of(shape) > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += size_of(shape)
    yield names


def _write_shard(path: Path, shapes: Shapes, values: Callable[[str], Tensor]) -> None:
    """Write a safetensors file by hand, since ``save_file`` wants all of its tensors at once."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size_of(shape)]}
        end += size_of(shape)
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        begin = file.tell()
        for name in shapes:
            file.seek(begin + entries[name]["data_offsets"][0])
            file.write(values(name).view(torch.uint8).numpy().data)
        file.truncate(begin + end)


class Weights:
    """Reads tensors of a safetensors file, or of the shards of an index, without the library under test."""

    def __init__(self, path: Path) -> None:
        sharded = path.suffix == ".json"
        files = sorted(set(json.loads(path.read_text())["weight_map"].values())) if sharded else [path.name]
        self.files = [path.with_name(file) for file in files]
        handles = [safe_open(file, framework="pt") for file in self.files]
        self._handle_of = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118 (no mapping)

    @property
    def names(self) -> set[str]:
        return set(self._handle_of)

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._handle_of[name].get_tensor(name)
        return tensor

    def first_rows(self, name: str, rows: int) -> Tensor:
        tensor: Tensor = self._handle_of[name].get_slice(name)[:rows]
        return tensor
