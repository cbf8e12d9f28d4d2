"""A folder under a final name is whole or absent: made in a stage beside its target, and put there by one rename.

A folder that is replaced is exchanged with the new one in one step where the system can do that, as Linux can. Where it
cannot, the name is free for a moment between two renames.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lwptv_lightning.files.atomic import Stage, is_there, naming, sync, sync_folder
from lwptv_lightning.files.locks import alone

_HERE = -100
"""``AT_FDCWD``: paths are meant as they are written."""
_EXCHANGE = 2
"""``RENAME_EXCHANGE`` of Linux."""


@contextmanager
def whole_folder(
    target: str | Path, *, overwrite: bool, belongs: Callable[[Path], bool] = lambda entry: False
) -> Iterator[Path]:
    """Yield an empty folder, which gets its final name when the block is left without an error.

    Its parent is a stage, where the block may put what is not to appear.

    Args:
        target: The final name.
        overwrite: Whether to replace a folder; without it, one of several writers at once succeeds.
        belongs: Tells of an entry of a folder that is there whether it may go with it.

    Raises:
        FileExistsError: Something has that name that is not to be replaced.
        OSError: Nothing can be written there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as home:
        ...     with whole_folder(f"{home}/a", overwrite=False) as made:
        ...         _ = (made / "config.json").write_text("whole")
        ...     [(path.name, [file.name for file in path.iterdir()]) for path in Path(home).iterdir()]
        [('a', ['config.json'])]
    """
    target = Path(target)
    require_free_folder(target, overwrite=overwrite, belongs=belongs)
    with Stage(target) as stage:
        made = stage.folder / "made"
        made.mkdir()
        yield made
        with naming(target):
            _sync_tree(made)
            with alone(target):
                require_free_folder(target, overwrite=overwrite, belongs=belongs)
                _install(made, target, overwrite=overwrite)
                sync_folder(target.parent)


def require_free_folder(
    target: Path, *, overwrite: bool, belongs: Callable[[Path], bool] = lambda entry: False
) -> None:
    """Raise where a folder could not be put in the place of what has its name; an empty folder is nobody's.

    Raises:
        FileExistsError: A folder is there, and ``overwrite`` is false or not all in it ``belongs``.
        OSError: It is no folder, the one that the process is in, or the root of a file system.
    """
    if target.name in ("", "..") or _holds_this_process(target):
        raise FileExistsError(f"{target} is the folder that this process is in, or holds it; name another one.")
    if not is_there(target):
        return
    if not target.is_dir():
        raise NotADirectoryError(f"{target} is no folder; name one, or a file that ends in .safetensors.")
    if os.path.ismount(target):
        raise OSError(f"{target} is the root of a file system, which no folder can replace; name a folder in it.")
    _require_owner(target)
    entries = sorted(target.iterdir())
    if entries and not overwrite:
        raise FileExistsError(f"{target} exists; give another path or overwrite=True.")
    if strangers := [entry.name for entry in entries if not belongs(entry)]:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise FileExistsError(
            f"{target} holds {strangers[0]!r}{more}, which is no part of a model and would be lost; name another one."
        )


def _holds_this_process(target: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(target.absolute())
    except FileNotFoundError:  # it is in one that is gone
        return False


def _require_owner(target: Path) -> None:
    """Raise a `PermissionError` for another user's folder, in one such as ``/tmp``."""
    owner, home = target.lstat().st_uid, target.absolute().parent.stat()
    if home.st_mode & stat.S_ISVTX and getattr(os, "geteuid", int)() not in (0, owner, home.st_uid):
        raise PermissionError(errno.EPERM, f"{target} is another user's, in a folder where only owners replace files.")


def _install(made: Path, target: Path, *, overwrite: bool) -> None:
    if is_there(target):
        with suppress(OSError):
            made.chmod(stat.S_IMODE(target.stat().st_mode) | 0o700)
    if overwrite and is_there(target):
        if not _exchanged(made, target):
            _replace(made, target)
        return
    try:
        os.rename(made, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(f"{target} exists already.") from None
        raise


def _exchanged(made: Path, target: Path) -> bool:
    """Exchange two names in one step; return whether the system can."""
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # another system than Linux
        return False
    done: int = exchange(_HERE, os.fsencode(made), _HERE, os.fsencode(target), _EXCHANGE)
    return done == 0


def _replace(made: Path, target: Path) -> None:
    """Replace a folder in two steps; one that fails is taken back."""
    before = made.with_name("before")
    os.rename(target, before)
    try:
        os.rename(made, target)
    except BaseException:
        os.rename(before, target)
        raise


def _sync_tree(folder: Path) -> None:
    for home, _, files in os.walk(folder):
        for file in files:
            sync(Path(home) / file)
        sync_folder(Path(home))
