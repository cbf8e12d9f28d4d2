"""The files of a model that the library wrote, and what has become of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lwptv_lightning.checkpoints import (
    CHECKSUM_KEYS,
    FILES_KEY,
    PROVENANCE,
    Checkpoint,
    CheckpointError,
    folder_problems,
    index_of,
    open_checkpoint,
    payload_problem,
    some_of,
)
from lwptv_lightning.registry import printable


@dataclass(frozen=True)
class WrittenModel:
    """A model in one file or in shards.

    Attributes:
        checkpoint: The model.
        files: Its files.
        damaged: File to what is wrong with it.
        unchecked: The files without a checksum, such as those of earlier versions.
    """

    checkpoint: Checkpoint
    files: tuple[Path, ...]
    damaged: Mapping[str, str]
    unchecked: tuple[str, ...]

    @classmethod
    def open(cls, path: str | Path) -> WrittenModel:
        """Open a model and read all its bytes for their checksums.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: It is no safetensors file and no index of such, or its header is damaged.
        """
        path = Path(path).expanduser()
        # Of a model in shards, what it was written to is no file.
        there = index_of(path) if not path.exists() and index_of(path).exists() else path
        checkpoint = open_checkpoint(there, prefix="")
        files = tuple(file.path for file in checkpoint.inputs if file.path.suffix == ".safetensors")
        if FILES_KEY in checkpoint.metadata and checkpoint.folder is not None:
            said = checkpoint.folder / PROVENANCE
            problems = folder_problems(checkpoint.folder, checkpoint.metadata, said)
            return cls(checkpoint, (*(file.path for file in checkpoint.inputs), said), problems, ())
        if not files:
            raise CheckpointError(f"{there}: expected a .safetensors file of the library, or the index of its shards.")
        about = {each: _metadata_of(each) for each in files}
        damaged = {str(each): problem for each in files if (problem := _problem(each, about, files[0])) is not None}
        unchecked = tuple(str(each) for each in files if not _has_checksum(about[each]))
        return cls(checkpoint, files, damaged, unchecked)


def _metadata_of(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, framework="pt") as handle:
            return dict(handle.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{file}: not a readable safetensors file ({error}).") from error


def _problem(file: Path, about: Mapping[Path, Mapping[str, str]], first: Path) -> str | None:
    """Say what is wrong with one of some shards, which must be of one run and say the same of themselves."""
    own, others = (
        {key: text for key, text in about[each].items() if key not in CHECKSUM_KEYS} for each in (file, first)
    )
    if own != others:
        keys = sorted(key for key in own.keys() | others.keys() if own.get(key) != others.get(key))
        return f"it is of another model than {printable(first.name)}: other metadata, {some_of(keys)}"
    return payload_problem(file) if _has_checksum(about[file]) else None


def _has_checksum(about: Mapping[str, str]) -> bool:
    return any(key in about for key in CHECKSUM_KEYS)
