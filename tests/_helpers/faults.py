"""Faults at each file operation in a folder: one of them fails, or all is interrupted there."""

import errno
import io
import os
import signal
import threading
from contextlib import contextmanager
from unittest import mock

try:
    import fcntl
except ImportError:
    fcntl = None

_BY_PATH = ("open", "mkdir", "link", "rename", "replace", "unlink", "rmdir", "chmod", "chown", "stat", "lstat")
_BY_PATH += ("scandir", "listdir", "statvfs", "symlink", "utime", "truncate")
_BY_HANDLE = ("fsync", "write", "ftruncate", "fstat")
_OF_FILES = ("write", "read", "readinto", "truncate", "seek", "flush", "close")


def failure():
    return OSError(errno.EIO, os.strerror(errno.EIO))


MODES = {
    "fails": (failure, False),
    "done, but reported as failed": (failure, True),
    "interrupted before": (KeyboardInterrupt, False),
    "interrupted after": (KeyboardInterrupt, True),
}
"""How an operation goes wrong: with what, and whether it was done nevertheless."""


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


KILLS = {"killed before": (_die, False), "killed after": (_die, True)}


class Faults:
    """Counts operations in a folder, and lets one of them go wrong.

    Attributes:
        done: The names of the operations so far.
        struck: The name of the one that went wrong.
    """

    def __init__(self, folder, number=None, mode="fails"):
        self.folder = str(folder)
        self.number = number
        self.error, self.after = (MODES | KILLS)[mode]
        self.done = []
        self.struck = None
        self._lock = threading.Lock()

    @contextmanager
    def injected(self):
        """Let operations inside the block go through here."""
        with mock.patch.object(io, "open", self._wrapped_open(io.open)):
            patches = [mock.patch.object(os, name, self._by_path(name)) for name in _BY_PATH]
            patches += [mock.patch.object(os, name, self._wrapped(name, getattr(os, name))) for name in _BY_HANDLE]
            if fcntl is not None:
                patches.append(mock.patch.object(fcntl, "flock", self._wrapped("flock", fcntl.flock)))
            for patch in patches:
                patch.start()
            try:
                yield self
            finally:
                for patch in patches:
                    patch.stop()

    def _is_here(self, path):
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)

    def _run(self, name, function, arguments, options):
        with self._lock:
            strikes = len(self.done) == self.number
            self.done.append(name)
        if not strikes:
            return function(*arguments, **options)
        self.struck = name
        if self.after:
            function(*arguments, **options)
        raise self.error()

    def _wrapped(self, name, function):
        return lambda *arguments, **options: self._run(name, function, arguments, options)

    def _by_path(self, name):
        function = getattr(os, name)

        def run(*arguments, **options):
            # Without a path it is a folder that is open.
            if arguments and (self._is_here(arguments[0]) or isinstance(arguments[0], int) or options.get("dir_fd")):
                return self._run(name, function, arguments, options)
            return function(*arguments, **options)

        return run

    def _wrapped_open(self, function):
        def run(file, *arguments, **options):
            if not self._is_here(file):
                return function(file, *arguments, **options)
            return _File(self._run("open", function, (file, *arguments), options), self)

        return run


class _File:
    """A file whose operations are counted."""

    def __init__(self, file, faults):
        self._file = file
        for name in _OF_FILES:
            if hasattr(file, name):
                setattr(self, name, faults._wrapped(name, getattr(file, name)))

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __iter__(self):
        return iter(self._file)
