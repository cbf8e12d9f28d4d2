"""Runs what may kill its process, or hang, in a copy of this one."""

import contextlib
import faulthandler
import os
import pickle
import select
import signal
import time
import warnings


def forked(body, seconds=60.0):
    """Run a function in a forked process.

    Returns:
        What it returned and None; or None and how it ended: a signal's name, ``"hang"``, or what it raised.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which wait in this process
        child = os.fork()
    if child == 0:
        os.close(reading)
        _answer(body, writing)
    os.close(writing)
    data, deadline = b"", time.monotonic() + seconds
    try:
        while True:
            if not select.select([reading], [], [], max(deadline - time.monotonic(), 0))[0]:
                os.kill(child, signal.SIGKILL)
                return None, "hang"
            part = os.read(reading, 1 << 16)
            if not part:
                break
            data += part
    finally:
        os.close(reading)
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return None, signal.Signals(os.WTERMSIG(status)).name
    return pickle.loads(data) if data else (None, "no answer")


def _answer(body, writing):
    faulthandler.disable()  # that it may be killed is what is tried
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            answer = pickle.dumps((body(), None))
    except BaseException as error:
        answer = pickle.dumps((None, f"{type(error).__name__}: {error}"))
    os.write(writing, answer)
    os.close(writing)
    os._exit(0)
