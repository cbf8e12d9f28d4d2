"""How a command ends: with what it did, or with one line of what went wrong, and the code that a shell expects."""

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

EXPECTED = (ValueError, TypeError, OSError)
"""What the library raises on a bad file or argument, in words for the one who gave it."""
_WRONG_ARGUMENTS = 2
"""What argparse exits with."""
_INTERRUPTED = 128 + signal.SIGINT
_NOBODY_READS = 128 + 13
"""What shells say of a program that a signal ended; the second is SIGPIPE, which Windows has not."""


class WrongArgumentsError(ValueError):
    """Arguments that a command's own parser does not take, told as argparse tells them."""


@contextmanager
def ending(
    command: str,
    *,
    debug: bool,
    in_words: Callable[[str], str] = str,
    tell: Callable[[str, int], object] = lambda message, code: None,
) -> Iterator[None]:
    """Turn whatever is raised in the block into an exit with one line of text; before it the traceback, if wanted.

    Args:
        command: What the line begins with.
        debug: Whether to show tracebacks.
        in_words: Gives an error's message as the user of a shell is told it.
        tell: Is told of it too, and of the code, before the exit.

    Raises:
        SystemExit: Always where something is raised: with code 1, 2 for a `WrongArgumentsError`, 130 for an
            interruption, 141 where nobody reads the output any more.
    """
    try:
        yield
        sys.stdout.flush()  # here, where it can be told that nobody reads it
    except KeyboardInterrupt:
        _interrupted(command, debug, tell)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # which Lightning makes an exit of its own of
            _interrupted(command, debug, tell)
        raise
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(_NOBODY_READS)
        if debug:
            traceback.print_exc()
        told = in_words(_told(error, debug))
        tell(told, _WRONG_ARGUMENTS if isinstance(error, WrongArgumentsError) else 1)
        if isinstance(error, WrongArgumentsError):
            print(f"{command}: error: {told}", file=sys.stderr)
            sys.exit(_WRONG_ARGUMENTS)
        sys.exit(f"{command}: {told}")


def _told(error: BaseException, debug: bool) -> str:
    if isinstance(error, EXPECTED) and str(error):
        return str(error)
    reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    hint = "" if debug else "; --debug shows the traceback"
    return f"unexpected {type(error).__name__}{': ' + reason if reason else ''}{hint}."


def _interrupted(command: str, debug: bool, tell: Callable[[str, int], object]) -> NoReturn:
    if debug:
        traceback.print_exc()
    tell("interrupted.", _INTERRUPTED)
    print(f"{command}: interrupted.", file=sys.stderr)
    sys.exit(_INTERRUPTED)


def _nobody_reads() -> bool:
    """Whether the output is a pipe whose other end is closed; then nothing is written to it when Python ends."""
    try:
        output = sys.stdout.fileno()
        poll = select.poll()
        poll.register(output, 0)
        closed = any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # an output that is no file, or a system that cannot tell
        return False
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return closed
