"""The command ``lwptv``. What a subcommand needs is imported when that subcommand runs, so that help is instant."""

import argparse
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from lwptv_lightning import __version__
from lwptv_lightning.cli import (
    card,
    check,
    collect,
    demo,
    diff,
    extract,
    init,
    learn,
    merge,
    push,
    rules,
    scores,
    sweep,
    validate,
    verify,
    zoo,
)
from lwptv_lightning.cli.ending import ending
from lwptv_lightning.registry import any_character, printable

COMMANDS = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        *(demo, init, merge, extract, check, diff, verify, card, push),
        *(validate, sweep, collect, learn, rules, scores, zoo),
    )
}
"""Each has ``run``, whose docstring is the command's help, and ``add_arguments`` where it takes some."""
_CONFIGURED = ("validate", "sweep", "collect", "learn")
"""Commands that run a configuration file. LightningCLI has a parser of its own, which takes all that follows."""

_DEBUG: dict[str, Any] = {"action": "store_true", "help": "show the traceback of an error"}
_ARGUMENT = re.compile(
    r"\b(exclude|prefix|ema|model|keep_classifier|keep|prune|task|overwrite|drop_rest|format)="
    r"(\(\.\.\.\)|\.\.\.|True|\([^()]*\)|'[^']*')"
)
_VALUE = {"(...)": "", "...": "", "True": ""}
"""What follows an argument's name in messages, and in an option's place."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: What follows the program's name; by default what the shell gave.

    Raises:
        SystemExit: On ``--help``, on wrong arguments, and with code 1 and one line of text on bad input; ``--debug``,
            anywhere among the arguments, shows the traceback before it.

    Example:
        >>> main(["scores"])  # doctest: +ELLIPSIS
        mean_abs ...
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Taken out here, as it may stand before a command or behind it, and some commands have a parser of their own.
    own = given.index("--") if "--" in given else len(given)
    debug = "--debug" in given[:own]
    given = [word for place, word in enumerate(given) if word != "--debug" or place > own]
    command = f"lwptv {given[0]}" if given and given[0] in COMMANDS else "lwptv"
    with ending(command, debug=debug, in_words=_in_shell_words):
        if given[:1] and given[0] in _CONFIGURED:
            options = argparse.Namespace(command=given[0], arguments=given[1:], debug=debug)
        else:
            options = _parser().parse_args(given)
        with any_character(), _warning_in_one_line(options.command):
            COMMANDS[options.command].run(options)


def _in_shell_words(text: str) -> str:
    """Return text of any characters for a terminal, with options as the shell names them where it names arguments."""
    text = text.replace("statistics=... or data=...", "--data-statistics")
    text = re.sub(r"(?<![\w-])(max_memory|max_shard_size)\b", lambda found: f"--{found[0].replace('_', '-')}", text)
    text = _ARGUMENT.sub(lambda found: f"--{found[1].replace('_', '-')}{_VALUE.get(found[2], ' ' + found[2])}", text)
    return "\n    ".join(map(printable, text.split("\n")))  # so that no name can look like a line of ours


@contextmanager
def _warning_in_one_line(command: str) -> Iterator[None]:
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"lwptv {command}: warning: {_in_shell_words(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


class _Parser(argparse.ArgumentParser):
    """A parser that shows what it was given as text."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and what is wrong, and exit with code 2."""
        super().error(printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lwptv", description="Merge fine-tuned models that keep working outside their training domains."
    )
    parser.add_argument("--version", action="version", version=f"lwptv-lightning {__version__}")
    parser.add_argument("--debug", **_DEBUG)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.run.__doc__, description=command.run.__doc__)
        subparser.add_argument("--debug", **_DEBUG)
        if hasattr(command, "add_arguments"):
            command.add_arguments(subparser)
    return parser
