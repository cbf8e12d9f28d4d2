"""Which file of a folder to open."""

from __future__ import annotations

from pathlib import Path

from lwptv_lightning.checkpoints.checkpoint import CheckpointError

_MAIN_FILES = (
    "task_vector.safetensors",
    "adapter_model.safetensors",
    "*.safetensors.index.json",
    "model.safetensors",
    "*.safetensors",
    "adapter_model.bin",
    "pytorch_model.bin",
)
"""What to open in a folder, most wanted first."""


def _main_file(folder: Path) -> Path:
    for pattern in _MAIN_FILES:
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise CheckpointError(f"{folder}: several checkpoints ({', '.join(p.name for p in found)}); name one.")
    raise CheckpointError(
        f"{folder}: no *.safetensors, *.safetensors.index.json or pytorch_model.bin in this folder; name the file."
    )
