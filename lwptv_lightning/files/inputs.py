"""Reads regular files alone, which stay as they were when they were opened, and lie where those that name them lie."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, NamedTuple

_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a FIFO",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a character device",
    stat.S_ISBLK: "a block device",
}
_MOST_TEXT = 1 << 26
"""Bytes: the objects that are made of JSON take some twenty times as many."""
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)


class _State(NamedTuple):
    """What tells whether a file is still the same, and holds the same."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> _State:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    def change(self, now: _State) -> str | None:
        """Return what differs now, in words."""
        if (self.device, self.inode) != (now.device, now.inode):
            return "another file has taken its place"
        if self.size != now.size:
            return f"it had {self.size} bytes and has {now.size}"
        return None if self.mtime_ns == now.mtime_ns else "it was written to"


@dataclass(frozen=True)
class InputFile:
    """A regular file, and what it was when it was first looked at; see `InputFile.at`.

    It holds no open file, and compares in another process as it does here. What a file is mapped or read for while it
    is being cut off cannot be told beforehand: the system ends a process that touches a page that is gone.

    Attributes:
        path: Where it stands, absolute.
        error: What to raise where it is not what it should be.
    """

    path: Path
    error: type[ValueError]
    _state: _State

    @classmethod
    def at(cls, path: str | Path, error: type[ValueError] = ValueError) -> InputFile:
        """Look at a file without opening it, so that none blocks and no device is touched.

        Args:
            path: Where it stands; links are followed.
            error: What to raise, here and later, where the file is not what it should be.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is no regular file; as ``error``.

        Example:
            >>> import tempfile
            >>> with tempfile.NamedTemporaryFile() as file:
            ...     InputFile.at(file.name).size
            0
        """
        try:
            found = os.stat(path)
        except (FileNotFoundError, PermissionError):
            raise
        except (OSError, ValueError) as problem:  # names that are too long or hold a zero, links in a circle
            raise error(f"{path}: no file can be opened by this name ({_reason(problem)}).") from problem
        if not stat.S_ISREG(found.st_mode):
            kind = next((kind for test, kind in _KINDS.items() if test(found.st_mode)), "something else")
            raise error(f"{path}: expected a regular file, not {kind}.")
        return cls(Path(path).absolute(), error, _State.of(found))

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self._state.size

    def require_unchanged(self) -> None:
        """Raise unless the file is still the same, of the same size and not written to since."""
        try:
            self._compare(os.stat(self._name))
        except OSError as problem:
            raise self._changed(f"it cannot be found any more ({_reason(problem)})") from problem

    def open(self) -> BinaryIO:
        """Open the file to read it, if it is still the same."""
        # A FIFO that has taken its place meanwhile must not block.
        file = open(self.path, "rb", opener=lambda path, flags: os.open(path, flags | _NONBLOCK))  # noqa: SIM115
        try:
            self._compare(os.fstat(file.fileno()))
        except BaseException:
            file.close()
            raise
        return file

    def text(self) -> bytes:
        """Return all bytes of a file that should be a small one, such as JSON."""
        if self.size > _MOST_TEXT:
            raise self.error(f"{self.path}: expected a small file of text, of {_MOST_TEXT} bytes at most.")
        with self.open() as file:
            return file.read(self.size)

    @cached_property
    def _name(self) -> str:
        """The path as the system takes it, which is asked for at each tensor."""
        return os.fspath(self.path)

    def _compare(self, found: os.stat_result) -> None:
        now = _State.of(found)
        if now != self._state and (change := self._state.change(now)):
            raise self._changed(change)

    def _changed(self, how: str) -> ValueError:
        return self.error(f"{self.path}: changed while it was in use: {how}. Open it again once it is complete.")


def beside(folder: Path, name: str, error: type[ValueError] = ValueError, *, origin: Path | None = None) -> Path:
    """Return the path of a file in a folder whose name a stranger wrote, such as a shard's in an index.

    Links are followed as far as the folder reaches; in the cache of the Hugging Face hub, whose files are links into
    the repository's folder, as far as that one does.

    Args:
        folder: Where the file must be.
        name: Its name, which may have folders in it.
        error: What to raise.
        origin: Another file of the folder. Where this is a link that the user made, its own folder is allowed too.

    Raises:
        ValueError: The name leads outside; as ``error``.

    Example:
        >>> beside(Path("/models/a"), "../b/x.safetensors")
        Traceback (most recent call last):
        ValueError: /models/a: '../b/x.safetensors' leads outside of this folder, where all files must lie.
    """
    # By both systems' rules, so that a name means the same everywhere.
    kinds = (PurePosixPath(name), PureWindowsPath(name))
    if not name or any(path.is_absolute() or path.drive or path.root or ".." in path.parts for path in kinds):
        raise error(f"{folder}: {name!r} leads outside of this folder, where all files must lie.")
    path = folder / name
    try:
        real = path.resolve()
        is_inside = real.is_relative_to(_reach(folder.absolute()).resolve())
        is_inside = is_inside or (origin is not None and real.is_relative_to(origin.resolve().parent))
    except (OSError, ValueError, RuntimeError) as problem:  # RuntimeError is of links in a circle
        raise error(f"{folder}: {name!r} names no file ({_reason(problem)}).") from problem
    if not is_inside:
        raise error(f"{folder}: {name!r} is a link that leads outside of this folder, where all files must lie.")
    return path


def _reach(folder: Path) -> Path:
    """Return how far links may lead from a folder: ``models--owner--name`` for what lies in its ``snapshots``."""
    for snapshots in (folder, *folder.parents):
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
            return snapshots.parent
    return folder


def _reason(problem: Exception) -> str:
    return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
