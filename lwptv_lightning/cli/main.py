"""The command ``lwptv``. What a subcommand needs is imported when that subcommand runs, so that help is instant."""

import argparse
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from typing import NoReturn

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
    tune,
    validate,
    verify,
    zoo,
)
from lwptv_lightning.cli.ending import WrongArgumentsError, ending
from lwptv_lightning.cli.from_config import part_overrides
from lwptv_lightning.cli.help import HELP, SWITCHES, Formatter, configured_help, epilog, overview
from lwptv_lightning.cli.results import print_document, print_shown
from lwptv_lightning.cli.running import without_banners
from lwptv_lightning.registry import Advance, any_character, leads, printable, watching

PURPOSES = {
    "start": (demo, init),
    "merge": (merge, extract, collect, learn),
    "evaluate": (validate, sweep, tune),
    "inspect": (check, diff, verify, rules, scores),
    "share": (card, push, zoo),
}
COMMANDS = {module.__name__.rpartition(".")[2]: module for modules in PURPOSES.values() for module in modules}
"""Each has ``run``, whose docstring is the command's help and which gives a `Result`; ``EXAMPLE``, a line or several
that its help ends with; and ``add_arguments`` where it takes some."""
_CONFIGURED = ("validate", "sweep", "tune", "collect", "learn")
"""Commands that run a configuration file. LightningCLI has a parser of its own, which takes all that follows."""

_ARGUMENT = re.compile(
    r"(?<!\w\()\b(exclude|prefix|ema|model|keep_classifier|keep|prune|task|overwrite|drop_rest|format)="
    r"(\(\.\.\.\)|\.\.\.|True|\([^()]*\)|'[^']*')"
)
_VALUE = {"(...)": "", "...": "", "True": ""}
"""What follows an argument's name in messages, and in an option's place; that of a call is no option's."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: What follows the program's name; by default what the shell gave.

    Raises:
        SystemExit: On ``--help``, on wrong arguments, on a check that failed, and with code 1 and one line of text on
            bad input; ``--debug``, anywhere among the arguments, shows the traceback before it, and with ``--json``
            the standard output has a document of it.

    Example:
        >>> main(["scores"])  # doctest: +ELLIPSIS
        mean_abs ...
    """
    given, switches = _parted(list(sys.argv[1:] if arguments is None else arguments))
    name = given[0] if given and given[0] in COMMANDS else None
    command = "lwptv" if name is None else f"lwptv {name}"

    def tell(message: str, code: int) -> None:
        if switches["json"] and leads():
            print_document({"command": name, "error": message, "exit_code": code})

    with ending(command, debug=switches["debug"], in_words=_in_shell_words, tell=tell):
        if name in _CONFIGURED:
            options = argparse.Namespace(command=name, arguments=given[1:])
            if HELP.intersection(given[1:]):
                print(configured_help(name, COMMANDS[name]))
                return
            options.arguments = ["--help" if word == "--help.trainer" else word for word in options.arguments]
        else:
            given, overrides = part_overrides(given)
            options = _parser().parse_args(given, argparse.Namespace(overrides=overrides))
        vars(options).update(switches)
        with any_character(), any_character(sys.stderr), _warning_in_one_line(options.command), watching(_watch):
            with _output_of(options), without_banners(), _shown(options.command):
                found = COMMANDS[options.command].run(options)
            if found is None:
                return
            if leads():
                if options.json:
                    print_document({"command": options.command, **found.values})
                else:
                    print_shown(found.shown, wide=options.wide)
        if not found.passed:
            sys.exit(1)


def _parted(given: list[str]) -> tuple[list[str], dict[str, bool]]:
    """Return the arguments without those that all commands take, and these.

    They are taken out here, as they may stand before a command or behind it, and some have a parser of their own.
    """
    own = given.index("--") if "--" in given else len(given)
    switches = {option.removeprefix("--"): option in given[:own] for option in SWITCHES}
    return [word for place, word in enumerate(given) if word not in SWITCHES or place > own], switches


def _output_of(options: argparse.Namespace) -> AbstractContextManager[object]:
    """Keep the standard output for a document, where one is asked for: what else is printed goes beside it."""
    prints = any(word.startswith("--print_config") for word in getattr(options, "arguments", ()))
    return redirect_stdout(sys.stderr) if options.json and not prints else nullcontext()


_ASKS_OR_PRINTS = ("push", "demo")
"""Commands that write to the terminal while they run; what takes long in them says so itself."""


def _shown(command: str) -> AbstractContextManager[object]:
    """Show that a command runs, where someone sees it and it takes long, whatever it does meanwhile."""
    is_seen = sys.stderr is not None and sys.stderr.isatty() and command not in _ASKS_OR_PRINTS
    return _watch(f"lwptv {command}", None) if is_seen else nullcontext()


def _watch(what: str, total: float | None) -> AbstractContextManager[Advance]:
    from lwptv_lightning.report import progress

    return progress(what, total)


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
        """Print the usage; what is wrong is told, and the program left with code 2, as for all wrong arguments."""
        self.print_usage(sys.stderr)
        raise WrongArgumentsError(printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lwptv", usage="lwptv COMMAND [OPTIONS]")
    parser.format_help = lambda: overview(PURPOSES)  # type: ignore[method-assign]
    parser.add_argument("--version", action="version", version=f"lwptv-lightning {__version__}")
    subparsers = parser.add_subparsers(prog="lwptv", dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, description=command.run.__doc__, formatter_class=Formatter, epilog=epilog(command)
        )
        if hasattr(command, "add_arguments"):
            command.add_arguments(subparser)
        _add_switches(subparser)
    return parser


def _add_switches(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("of every command")
    for option, text in SWITCHES.items():
        group.add_argument(option, action="store_true", help=text)
