"""Where the zoo's files lie, in the package or in a folder that `build` wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from torch import nn

from lwptv_lightning.checkpoints import open_checkpoint
from lwptv_lightning.registry import (
    printable,
    require_kind,
)
from lwptv_lightning.zoo.digits import ASSETS
from lwptv_lightning.zoo.domains import ID_SETS, OOD_SETS, set_alphabet
from lwptv_lightning.zoo.glyphs import class_rows
from lwptv_lightning.zoo.model import PrototypeHead

BASE_FILE: Final = "base.safetensors"
HEADS_FILE: Final = "heads.safetensors"

Root = str | os.PathLike[str]


def expert_file(task: str) -> str:
    """Return the file name of an expert's weights.

    Args:
        task: A name in ``ID_SETS``.

    Returns:
        A name without a folder.

    Example:
        >>> expert_file("greek_noise")
        'expert_greek_noise.safetensors'
    """
    return f"expert_{task}.safetensors"


def base_path(root: Root | None = None) -> Path:
    """Return the file of the base's weights.

    Args:
        root: A folder that `build` wrote; the packaged one by default.

    Returns:
        A safetensors file in float16.

    Raises:
        FileNotFoundError: If the folder has no such file.

    Example:
        >>> base_path().name
        'base.safetensors'
    """
    return _existing(root, BASE_FILE)


def expert_paths(root: Root | None = None) -> dict[str, Path]:
    """Return the files of the experts' weights.

    Args:
        root: A folder that `build` wrote; the packaged one by default.

    Returns:
        Task name -> safetensors file in float16, with the tensor names of the base; keys are ``ID_SETS``.

    Raises:
        FileNotFoundError: If one is missing.

    Example:
        >>> expert_paths()["greek_noise"].name
        'expert_greek_noise.safetensors'
    """
    return {task: _existing(root, expert_file(task)) for task in ID_SETS}


def heads(root: Root | None = None) -> dict[str, nn.Module]:
    """Return the frozen head of every ID and OOD set.

    Args:
        root: A folder that `build` wrote; the packaged one by default.

    Returns:
        Set name -> module from features ``(B, D)`` to logits ``(B, C)``, with C the classes of that set. Its
        parameters require no gradient.

    Raises:
        FileNotFoundError: If the folder has no such file.
        CheckpointError: If the file is damaged.

    Example:
        >>> import torch
        >>> heads()["digits"](torch.ones(2, 192)).shape
        torch.Size([2, 10])
    """
    stored = open_checkpoint(_existing(root, HEADS_FILE))
    prototypes, scale = stored.read("prototypes").float(), stored.read("scale").float()
    rows = {name: class_rows(set_alphabet(name)) for name in ID_SETS + OOD_SETS}
    # Each head owns a copy: a view would keep, and save, every class of the zoo with it.
    return {
        name: PrototypeHead(prototypes[row.start : row.stop].clone(), scale.clone()).requires_grad_(False)
        for name, row in rows.items()
    }


def _existing(root: Root | None, name: str) -> Path:
    require_kind("root", root, str | Path | None, "a path")
    path = Path(ASSETS if root is None else root, name)
    if not path.is_file():
        raise FileNotFoundError(
            f"root: expected a folder written by `lwptv zoo build` with {name} in it, got {printable(path)}."
        )
    return path
