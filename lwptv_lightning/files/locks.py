"""Locks that processes hold as long as they live, and names for what stands beside a file."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks, and its rename does not replace
    fcntl = None  # type: ignore[assignment]

_PATIENCE = 600
"""Seconds to wait for another process to install its files, which takes a moment."""
_LONGEST_NAME = 200
"""Bytes of a target's name that are kept in those made from it; a system allows 255."""
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def alone(target: Path) -> Iterator[bool]:
    """Wait for other processes that install files for one target, and hold them off meanwhile.

    It tells whether it does: there are systems without locks.

    Raises:
        TimeoutError: Another process has held it for ten minutes.
    """
    path = target.with_name(f".{short(target.name)}.lock")
    lock = _lock_file(path)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            try:
                with suppress(OSError):
                    os.unlink(path)
            finally:
                os.close(lock)


def short(name: str) -> str:
    """Return a name, or one made of it where others that hold it would be longer than a system allows."""
    if len(os.fsencode(name)) <= _LONGEST_NAME:
        return name
    return hashlib.sha256(os.fsencode(name)).hexdigest()


def try_lock(opened: int, *, wait: bool = False) -> bool | None:
    """Lock what is open; return whether another one has not locked it, and None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # which systems without locks say in many ways
        return None
    return True


def _lock_file(path: Path) -> int | None:
    """Return a lock that is held by its file, which is made for it; None where there are no locks."""
    patience = time.monotonic() + _PATIENCE
    while fcntl is not None:
        try:
            opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | NOFOLLOW, 0o666)
        except OSError:  # no right to write, which what is locked for will tell better, or another's
            return None
        got: bool | None = False
        try:
            got = try_lock(opened) and _is_still(path, opened)
        finally:
            if not got:
                os.close(opened)
        if got:
            return opened
        if got is None:
            with suppress(OSError):
                os.unlink(path)
            return None
        if time.monotonic() > patience:
            raise TimeoutError(f"another process has held {path} for {_PATIENCE} seconds.")
        time.sleep(0.01)
    return None


def _is_still(path: Path, opened: int) -> bool:
    """Tell whether what is open has that name yet: who held a lock before may have removed its file."""
    try:
        return os.path.samestat(os.fstat(opened), os.lstat(path))
    except FileNotFoundError:
        return False
