"""A folder as `torch.distributed.checkpoint` loads it, into one process or the shards of many."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter

from lwptv_lightning.checkpoints import PROVENANCE, open_checkpoint, with_checksums_of


def write_distributed(weights: Path, folder: Path, metadata: Mapping[str, str]) -> None:
    """Write the tensors of a safetensors file, which is mapped and not held, as a distributed checkpoint.

    The names are those of the file, so that ``dcp.load(model.state_dict(), checkpoint_id=folder)`` finds them.

    Args:
        weights: The file.
        folder: Where to write.
        metadata: What the model says of itself, which stands in a file of its own.
    """
    checkpoint = open_checkpoint(weights, prefix="")
    state = {name: checkpoint.read(name) for name in checkpoint.names}
    with warnings.catch_warnings():
        # One process writes, whatever others are there.
        warnings.filterwarnings("ignore", message=".*single process")
        dcp.save(state, storage_writer=FileSystemWriter(folder), no_dist=True)
    (folder / PROVENANCE).write_text(json.dumps(with_checksums_of(folder, metadata), indent=2), encoding="utf-8")
