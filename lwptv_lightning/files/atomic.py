"""A file under a final name is whole or absent, whatever is thrown and whenever the process is killed.

What is written is made in a folder of its own beside the target, a `Stage`, and moved to its final name when it is
whole and on the disk. The stage's name is random, so that no two processes share it, on one machine or on several, and
only its owner may enter it, so that nobody can plant a link there. A process holds a lock on its stages: those that
nobody holds are of killed processes, and the next one that writes the same target removes them. Process numbers would
not tell, since containers count them from one. Where there are no such locks, a stage has to be a week old.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lwptv_lightning.files.locks import NOFOLLOW, alone, short, try_lock

_STALE_AFTER = 7 * 24 * 3600
"""Seconds after which a stage is a killed process's where locks cannot tell."""
_TRIES = 100
_LOCK = "lock"
"""The file in a stage that is locked; not the folder, whose lock other machines would not see."""


class Stage:
    """A private folder beside a target, where files are made before they get their final names.

    It is there while the block runs, with its files as far as they were not installed, and nothing of it afterwards.

    Args:
        target: The file that is written, or the first of several; its folder is made where it does not exist.

    Raises:
        OSError: Nothing can be written there; it names the target.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Stage(f"{folder}/a.txt") as stage:
        ...         _ = (stage.folder / "a").write_text("whole")
        ...         stage.install("a", stage.target)
        ...     [(path.name, path.read_text()) for path in Path(folder).iterdir()]
        [('a.txt', 'whole')]
    """

    def __init__(self, target: str | Path) -> None:
        self.target = Path(target)
        self.folder = self.target
        """Where to make files, in any way."""
        self._lock: int | None = None

    def __enter__(self) -> Stage:
        home = self.target.parent
        if home.exists() and not home.is_dir():
            raise FileExistsError(f"{self.target}: nothing can be written to {home}, which is no folder.")
        with naming(self.target, f"nothing can be written to {home}"):
            home.mkdir(parents=True, exist_ok=True)
            _remove_stale(self.target.parent, re.escape(short(self.target.name)))
            try:
                if not any(self._is_made() for _ in range(_TRIES)):
                    raise FileNotFoundError(f"{self.target} cannot be written: its temporary files disappear.")
            except BaseException:
                self._discard()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    def install(self, name: str, final: str | Path, *, overwrite: bool = True, like: Path | None = None) -> None:
        """Give a file that was made here its final name, in the target's folder, once it is on the disk.

        It has the permissions of the file that it replaces, or that ``like`` names, or those that the process gives to
        new ones. A symbolic link is replaced, not followed.

        Raises:
            FileExistsError: Something has that name, and ``overwrite`` is false.
            OSError: It cannot be written, or what has the name is no regular file.
        """
        made, final = self.folder / name, Path(final)
        with naming(final):
            require_replaceable(final)
            sync(made)
            _keep_permissions(made, like or final)
            if overwrite:
                os.replace(made, final)
            else:
                _move_to_new(made, final)
            sync_folder(final.parent)

    def _is_made(self) -> bool:
        """Make the folder and lock it; another process may take it for a killed one's before it is locked."""
        self._discard()
        folder = self.target.with_name(f".{short(self.target.name)}.{secrets.token_hex(8)}.tmp")
        os.mkdir(folder, 0o700)
        self.folder = folder
        try:
            self._lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            return False
        try_lock(self._lock, wait=True)
        return (folder / _LOCK).exists()

    def _discard(self) -> None:
        folder, self.folder = self.folder, self.target
        lock, self._lock = self._lock, None
        try:
            if folder != self.target:
                _remove(folder)
        finally:
            if lock is not None:
                os.close(lock)


def write_whole(path: str | Path, content: str | bytes, *, overwrite: bool = True) -> Path:
    """Write a file that is whole or absent, text as UTF-8, and return its path; see `Stage.install`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(f"{folder}/a.txt", "whole").read_text()
        'whole'
    """
    with Stage(path) as stage:
        with naming(path):
            (stage.folder / "content").write_bytes(content.encode() if isinstance(content, str) else content)
        stage.install("content", path, overwrite=overwrite)
    return stage.target


@contextmanager
def naming(path: str | Path, failed: str = "could not be written") -> Iterator[None]:
    """Let an error of the system say which file could not be written."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.strerror is None or str(path) in error.strerror:
            raise
        raise OSError(error.errno, f"{path}: {failed} ({error.strerror}).") from error


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    with suppress(PermissionError):  # Windows opens no folder, and one may have no right to read it
        sync(folder, os.O_RDONLY)


def sync(path: Path, flags: int = os.O_RDWR) -> None:
    """Bring a file to the disk."""
    opened = os.open(path, flags)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # as file systems say that they cannot
            raise
    finally:
        os.close(opened)


def is_there(path: Path) -> bool:
    """Tell whether something has a name, a link to nothing too; where that cannot be known, it is an error."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def require_replaceable(path: Path) -> None:
    """Raise where a file of that name could not be put in the place of what has it.

    Raises:
        PermissionError: It is another user's, in a folder such as ``/tmp``.
        OSError: It is no regular file.
    """
    if not is_there(path):
        return
    with suppress(FileNotFoundError):  # a link to nothing
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(f"{path} is no regular file; it is not replaced.")
    owner, home = path.lstat().st_uid, path.parent.stat()
    if home.st_mode & stat.S_ISVTX and getattr(os, "geteuid", int)() not in (0, owner, home.st_uid):
        raise PermissionError(errno.EPERM, f"{path} is another user's, in a folder where only owners replace files.")


def _keep_permissions(made: Path, replaced: Path) -> None:
    try:
        before = replaced.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(before.st_mode):
        return
    mode = stat.S_IMODE(before.st_mode) & 0o777
    if hasattr(os, "chown") and made.stat().st_gid != before.st_gid:
        try:
            os.chown(made, -1, before.st_gid)
        except OSError:  # the group that it has instead may do what everybody may
            mode = mode & ~0o070 | (mode & 0o007) << 3
    if stat.S_IMODE(made.stat().st_mode) != mode:  # file systems without permissions refuse any change
        made.chmod(mode)


def _move_to_new(made: Path, final: Path) -> None:
    """Give a file a name that nothing has, of two processes to one alone."""
    try:
        os.link(made, final, follow_symlinks=False)
    except (OSError, NotImplementedError):
        if not is_there(final):  # no hard links here; or a fault, which the rename shows too
            with alone(final.with_name(f"{final.name}.new")):
                if not is_there(final):
                    os.rename(made, final)
                    return
        if not (final.exists() and os.path.samefile(made, final)):  # a network's file system may do it and say no
            raise FileExistsError(f"{final} exists already.") from None
    with suppress(OSError):  # which goes with the stage at the latest
        os.unlink(made)


def remove_stale(folder: Path) -> None:
    """Remove stages in a folder, whatever their targets, whose processes are gone.

    One that was killed once its file had its name leaves a stage which a target that is not written again would keep.
    """
    _remove_stale(folder, r".+")


def _remove_stale(folder: Path, target: str) -> None:
    """Remove the stale ones of targets of a pattern; a link of such a name was planted, and is left."""
    pattern = re.compile(rf"\.{target}\.[0-9a-f]{{16}}\.tmp")
    with suppress(OSError), os.scandir(folder) as entries:
        named = [entry for entry in entries if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]
        for path in (Path(entry.path) for entry in named):
            _remove_if_stale(path)


def _remove_if_stale(folder: Path) -> None:
    try:
        opened = os.open(folder / _LOCK, os.O_RDWR | NOFOLLOW)
    except FileNotFoundError:  # killed, or not yet come, between two steps: only an empty one is removed
        with suppress(OSError):
            os.rmdir(folder)
        return
    except OSError:  # another user's
        return
    try:
        got = try_lock(opened)
        if got or (got is None and time.time() - os.fstat(opened).st_mtime > _STALE_AFTER):
            _remove(folder)
    finally:
        os.close(opened)


def _remove(folder: Path) -> None:
    """Remove a stage as far as that can be, its lock last, so that one that is killed here can be told to be stale."""
    with suppress(OSError):
        for entry in folder.iterdir():
            if entry.name != _LOCK:
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink()
        (folder / _LOCK).unlink(missing_ok=True)
        folder.rmdir()
