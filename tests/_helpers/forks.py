"""Processes that begin where the test is, with all that it imported."""

import os
import signal
import sys
import time
import traceback
import warnings


def forked(action):
    """Run something in a process of its own, and return its number; its exit status tells what ``action`` returned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of other threads, of which none holds a lock here
        child = os.fork()
    if child:
        return child
    status = 99
    try:
        status = int(action() or 0)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(status)


def status_of(child, seconds=120.0):
    """Wait for a process, and return its status: negative where a signal ended it.

    One that hangs is ended: by ``SIGABRT``, at which pytest's faulthandler writes where its threads were.
    """
    deadline = time.monotonic() + seconds
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGABRT)
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.001)
    return os.waitstatus_to_exitcode(ended[1])


def kill(child):
    os.kill(child, signal.SIGKILL)
    return status_of(child)
