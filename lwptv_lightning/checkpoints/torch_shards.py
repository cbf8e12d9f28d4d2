"""Reads models in several torch files with an index, as transformers wrote them before safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lwptv_lightning.checkpoints.checkpoint import Checkpoint
from lwptv_lightning.checkpoints.safetensors import require_agreement, shards_of
from lwptv_lightning.checkpoints.torch_file import _from_torch_file
from lwptv_lightning.files import InputFile


def _from_torch_index(index: InputFile, weight_map: Mapping[str, str]) -> Checkpoint:
    shards = {name: _from_torch_file(file.path, None) for name, file in shards_of(index, weight_map).items()}
    require_agreement(index.path, weight_map, {name: shard.headers for name, shard in shards.items()})
    homes = {name: shard for file, shard in shards.items() for name in shard.names if weight_map[name] == file}
    return Checkpoint(
        str(index.path),
        {name: home.headers[name] for name, home in homes.items()},
        _ShardReader(homes),
        folder=index.path.parent,
        format="sharded torch",
        inputs=(index, *(file for shard in shards.values() for file in shard.inputs)),
    )


@dataclass(frozen=True)
class _ShardReader:
    """Reads each tensor from the shard that the index names."""

    homes: Mapping[str, Checkpoint]

    def read(self, name: str) -> Tensor:
        return self.homes[name].read(name)
