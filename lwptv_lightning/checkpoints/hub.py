"""Fetch a checkpoint by its name on the Hugging Face hub, or find it in the local cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lwptv_lightning.checkpoints.checkpoint import CheckpointError
from lwptv_lightning.checkpoints.safetensors import weight_map_of
from lwptv_lightning.files import InputFile
from lwptv_lightning.registry import printable

SCHEMES = ("hf-hub:", "hf://")
"""What a name on the hub begins with."""
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<file>.+))?")
_WEIGHTS = (
    "task_vector.safetensors",
    "adapter_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
"""What a repository's weights are called, most wanted first."""
_CONFIGURATIONS = ("config.json", "adapter_config.json", "open_clip_config.json", "README.md")
_CACHED = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<model>[\w.-]+)")


def fetch(name: str) -> Path:
    """Return the local path of a checkpoint on the hub, downloaded where the cache does not have it.

    Only the weights' file, its shards, its card and the small configuration files beside it are fetched. Without a
    network, or with ``HF_HUB_OFFLINE=1``, the cache alone is used.
    """
    matched = _NAME.fullmatch(name.removeprefix("hf-hub:").removeprefix("hf://"))
    if matched is None:
        raise ValueError(f"{name!r} is no name on the hub; expected hf-hub:owner/model[@revision][/file].")
    repo, revision, file = matched["repo"], matched["revision"], matched["file"]
    for wanted in (file,) if file else _WEIGHTS:
        if (path := _download(name, repo, revision, wanted)) is not None:
            _download_companions(name, repo, revision, wanted, path)
            return path
    expected = f"no {file!r}" if file else f"none of {', '.join(_WEIGHTS)}"
    raise FileNotFoundError(
        f"{printable(name)}: {expected} found on the hub or, without a network, in the local cache."
    )


def hub_name(folder: Path) -> str | None:
    """Return ``owner/model`` of a folder in the local cache of the hub, and None of any other.

    Example:
        >>> hub_name(Path("/cache/models--owner--my--model/snapshots/abc"))
        'owner/my--model'
    """
    parts = folder.absolute().parts
    for place, part in enumerate(parts[:-1]):
        if parts[place + 1] == "snapshots" and (found := _CACHED.fullmatch(part)):
            return f"{found['owner']}/{found['model']}"
    return None


def fetch_beside(folder: Path, patterns: Sequence[str]) -> bool:
    """Fetch the files of some globs that belong beside a checkpoint of the hub, and tell whether the hub was asked.

    Args:
        folder: Where the checkpoint stands; one that is in no cache of the hub has all that belongs there.
        patterns: The globs.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    if (repo := hub_name(folder)) is None:
        return True
    parts = folder.absolute().parts
    place = len(parts) - 1 - parts[::-1].index("snapshots")
    revision, inside = parts[place + 1], "/".join(parts[place + 2 :])
    wanted = [f"{inside}/{pattern}".lstrip("/") for pattern in patterns]
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        HfApi().repo_info(repo, revision=revision)  # as the next call would be content with the cache
        snapshot_download(repo, revision=revision, allow_patterns=wanted)
    except Exception:  # of the network's libraries, or of the hub
        return False
    return True


def _download_companions(name: str, repo: str, revision: str | None, wanted: str, path: Path) -> None:
    """Fetch what belongs beside a weights' file."""
    folder = wanted.rpartition("/")[0]
    is_index = wanted.endswith(".index.json")
    shards = weight_map_of(InputFile.at(path, CheckpointError)).values() if is_index else ()
    for file in dict.fromkeys((*_CONFIGURATIONS, *shards)):
        _download(name, repo, revision, f"{folder}/{file}".lstrip("/"))


def _download(name: str, repo: str, revision: str | None, file: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(hf_hub_download(repo, file, revision=revision))
    except EntryNotFoundError:  # also what the cache alone does not have
        return None
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{printable(name)}: no repository {repo!r} on the hub, or no right to read it."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{printable(name)}: {repo!r} has no revision {revision!r}.") from error
