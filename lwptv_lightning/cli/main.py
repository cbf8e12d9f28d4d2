"""The command ``lwptv``. What a subcommand needs is imported when that subcommand runs, so that help is instant."""

import argparse
import sys
from collections.abc import Sequence

from lwptv_lightning import __version__
from lwptv_lightning.cli import check, demo, diff, merge, rules, scores, validate, zoo

COMMANDS = {
    module.__name__.rpartition(".")[2]: module for module in (demo, merge, check, diff, validate, rules, scores, zoo)
}
"""Each has ``run``, whose docstring is the command's help, and ``add_arguments`` where it takes some."""


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
        COMMANDS[options.command].run(options)
    except (ValueError, OSError, TypeError) as error:
        sys.exit(f"lwptv {options.command}: {error}")


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
