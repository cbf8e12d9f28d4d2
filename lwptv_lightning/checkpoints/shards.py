"""The files of one model, and the one step that decides which model a reader finds.

A model for ``merged.safetensors`` is that file, or shards that ``merged.safetensors.index.json`` names. What replaces
it is made beside it, and one rename switches, of the file where there is no index before and after, else of the index.
Until then each way to open it, by the file, by the index or by the folder (which prefers the index), gives all of the
old model or, where that way did not exist, nothing; from then on all of the new one. From shards to one file, the index
first names the new file under another name, which becomes its final name only then. From one file to shards, the old
file stays for who opens just that, until it is removed at once after the switch. What a killed process left goes with
the next model that is written for the same path.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lwptv_lightning.checkpoints.payload import PAYLOAD_KEY
from lwptv_lightning.files import InputFile, Stage, alone, is_there, naming, require_replaceable
from lwptv_lightning.registry import parse_json, printable

_SHARD = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})(?P<run>\.[0-9a-f]{8})?\.safetensors")
_INDEX_FILE = "index"


def index_of(path: str | Path) -> Path:
    """Return where the index of shards stands that are written for a path."""
    return Path(f"{path}.index.json")


def is_part(name: str) -> bool:
    """Tell whether a file's name says that it is a shard that an index names, and no model by itself.

    Example:
        >>> is_part("model-00001-of-00002.safetensors"), is_part("model.safetensors")
        (True, False)
    """
    found = _SHARD.fullmatch(name)
    return found is not None and (found["count"] != "00001" or found["run"] is not None)


def require_free(path: Path, overwrite: bool) -> None:
    """Raise a FileExistsError where a model stands at a path that may not be replaced; an OSError if it cannot be."""
    for there in (path, index_of(path)):
        if not overwrite and is_there(there):
            raise FileExistsError(f"{printable(there)} exists; give another path or overwrite=True.")
        require_replaceable(there)


def publish(stage: Stage, made: Mapping[str, Sequence[str]], total_size: int, *, overwrite: bool) -> None:
    """Install the files of a model, made in a stage, for the stage's target.

    Args:
        stage: Of the path that the model is for.
        made: The files' names in the stage, to the names of their tensors.
        total_size: Bytes of all tensors.
        overwrite: Whether to replace a model; without it, one of several writers succeeds, and the others are refused.

    Raises:
        FileExistsError: There is a model, and ``overwrite`` is false.
        OSError: A file could not be written.
    """
    path, index = stage.target, index_of(stage.target)
    with naming(path), alone(path) as is_alone:
        require_free(path, overwrite)
        switch = _Switch(stage, total_size, overwrite, _parts_named_by(index, path))
        try:
            if len(made) > 1:
                switch.to_shards(made)
                path.unlink(missing_ok=True)
            elif is_there(index):
                switch.from_shards_to_one(*next(iter(made.items())))
            else:
                stage.install(next(iter(made)), path, overwrite=overwrite)
        finally:
            _remove_leftovers(path, switch.own, with_killed_ones=is_alone)


class _Switch:
    """Installs what an index names, and then the index."""

    def __init__(self, stage: Stage, total_size: int, overwrite: bool, replaced: Collection[str]) -> None:
        self.own = set(replaced)
        """Shards that are the replaced model's or this one's, and may go where no index names them."""
        self._stage = stage
        self._home = stage.target.parent
        self._total_size = total_size
        self._overwrite = overwrite
        before = [stage.target, *(self._home / name for name in sorted(replaced))]
        self._like = next(filter(is_there, before), None)

    def to_shards(self, made: Mapping[str, Sequence[str]]) -> None:
        names = self._names(len(made))
        for staged, name in zip(made, names, strict=True):
            self._install_shard(staged, name)
        self._install_index({name: file for file, part in zip(names, made.values(), strict=True) for name in part})

    def from_shards_to_one(self, staged: str, tensors: Sequence[str]) -> None:
        path, twin = self._stage.target, f"{staged}.twin"
        try:
            os.link(self._stage.folder / staged, self._stage.folder / twin)
        except (OSError, NotImplementedError):  # no hard links here: for a moment the file is new and the index old
            self._stage.install(staged, path, like=self._like)
            self._install_index(dict.fromkeys(tensors, path.name))
        else:
            (name,) = self._names(1)
            self._install_shard(twin, name)
            self._install_index(dict.fromkeys(tensors, name))
            self._stage.install(staged, path, like=self._like)
        index_of(path).unlink()

    def _names(self, count: int) -> list[str]:
        """Return names of shards that nothing has: as transformers has them, with the run's where a model was there."""
        path = self._stage.target
        is_fresh = not any(is_there(there) for there in (path, index_of(path)))
        try:
            is_fresh = is_fresh and not _parts_beside(path)
        except PermissionError:  # a folder that one may write to, but not read
            is_fresh = False
        run = "" if is_fresh else f".{secrets.token_hex(4)}"
        return [f"{path.stem}-{number:05}-of-{count:05}{run}.safetensors" for number in range(1, count + 1)]

    def _install_shard(self, staged: str, name: str) -> None:
        self._stage.install(staged, self._home / name, overwrite=False, like=self._like)
        self.own.add(name)  # only now: until then, one of that name may be another process's

    def _install_index(self, weight_map: Mapping[str, str]) -> None:
        text = json.dumps({"metadata": {"total_size": self._total_size}, "weight_map": weight_map}, indent=2)
        (self._stage.folder / _INDEX_FILE).write_text(text)
        index = index_of(self._stage.target)
        like = index if is_there(index) else self._like
        self._stage.install(_INDEX_FILE, index, overwrite=self._overwrite, like=like)


def _parts_beside(path: Path) -> list[Path]:
    """List what is named as a shard of a path's model."""
    return [file for file in path.parent.iterdir() if _is_part_of(path, file.name)]


def _is_part_of(path: Path, name: str) -> bool:
    matched = _SHARD.fullmatch(name)
    return matched is not None and matched["stem"] == path.stem


def _parts_named_by(index: Path, path: Path) -> set[str]:
    """Return the shards of a path's model that an index names; what else it names is not this model's to remove.

    Raises:
        OSError: What it names cannot be known.
    """
    try:
        text = InputFile.at(index).text()
    except FileNotFoundError:
        return set()
    except ValueError as error:
        problem = error.__cause__
        if isinstance(problem, OSError) and problem.errno != errno.ELOOP:  # a link in a circle is no index
            raise problem from None
        return set()
    try:
        named = set(parse_json(text, "the index")["weight_map"].values())
        return {name for name in named if _is_part_of(path, name)}
    except (ValueError, KeyError, TypeError, AttributeError):  # no index, which is replaced as any other file
        return set()


def _remove_leftovers(path: Path, own: Collection[str], *, with_killed_ones: bool) -> None:
    """Remove shards that no index names: of the replaced model and of this run, and of others that failed."""
    with suppress(OSError):  # what the next run will remove
        indices = [file for file in path.parent.iterdir() if file.name.endswith(".safetensors.index.json")]
        named = {name for index in indices for name in _parts_named_by(index, path)}
        for file in _parts_beside(path):
            if file.name not in named and (file.name in own or (with_killed_ones and _is_ours(file))):
                file.unlink()


def _is_ours(file: Path) -> bool:
    if not file.is_file():  # reading a pipe would wait for ever
        return False
    try:
        with safe_open(file, framework="pt") as handle:
            return PAYLOAD_KEY in (handle.metadata() or {})
    except (SafetensorError, OSError):
        return False
