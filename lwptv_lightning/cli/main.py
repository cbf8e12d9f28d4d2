"""The command ``lwptv``. What a subcommand needs is imported when that subcommand runs, so that help is instant."""

import argparse
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lwptv_lightning import __version__
from lwptv_lightning.cli import check, demo, diff, merge, rules, scores, validate, zoo

COMMANDS = {
    module.__name__.rpartition(".")[2]: module for module in (demo, merge, check, diff, validate, rules, scores, zoo)
}
"""Each has ``run``, whose docstring is the command's help, and ``add_arguments`` where it takes some."""

_ARGUMENT = re.compile(r"\b(exclude|prefix|ema|model|keep|prune|task)=(\(\.\.\.\)|\.\.\.|True|\([^()]*\)|'[^']*')")
_VALUE = {"(...)": "", "...": "", "True": ""}
"""What follows an argument's name in messages, and in an option's place."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: What follows the program's name; by default what the shell gave.

    Raises:
        SystemExit: On ``--help``, on wrong arguments, and with code 1 and one line of text on bad input.

    Example:
        >>> main(["scores"])  # doctest: +ELLIPSIS
        mean_abs ...
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # LightningCLI has a parser of its own, which takes all that follows.
    if given[:1] == ["validate"]:
        options = argparse.Namespace(command="validate", arguments=given[1:])
    else:
        options = _parser().parse_args(given)
    try:
        with _warning_in_one_line(options.command):
            COMMANDS[options.command].run(options)
    except (ValueError, OSError, TypeError) as error:
        sys.exit(f"lwptv {options.command}: {_in_shell_words(str(error))}")


def _in_shell_words(text: str) -> str:
    """Name options as the shell does, where an error names a function's argument."""
    text = text.replace("statistics=... or data=...", "--data-statistics")
    text = re.sub(r"(?<![\w-])(max_memory|max_shard_size)\b", lambda found: f"--{found[0].replace('_', '-')}", text)
    return _ARGUMENT.sub(lambda found: f"--{found[1]}{_VALUE.get(found[2], ' ' + found[2])}", text)


@contextmanager
def _warning_in_one_line(command: str) -> Iterator[None]:
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"lwptv {command}: warning: {_in_shell_words(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lwptv", description="Merge fine-tuned models that keep working outside their training domains."
    )
    parser.add_argument("--version", action="version", version=f"lwptv-lightning {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.run.__doc__, description=command.run.__doc__)
        if hasattr(command, "add_arguments"):
            command.add_arguments(subparser)
    return parser
