"""The pages that ``--help`` prints: commands by purpose, a command's examples, a configuration's keys first."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from textwrap import fill
from types import ModuleType
from typing import Any

SWITCHES = {
    "--json": "print one document of JSON, and nothing else, on the standard output",
    "--wide": "print tables with all their columns, however wide",
    "--debug": "show the traceback of an error",
}
"""Options that every command takes, wherever they stand."""
HELP = frozenset({"-h", "--help"})
_WIDTH = 100

_TRAINER = "of Lightning's Trainer, such as accelerator; --help.trainer lists all"


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples, and is never wider than other output is."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)
        self._width = min(self._width, _WIDTH - 2)


def overview(purposes: Mapping[str, Sequence[ModuleType]]) -> str:
    """Return the whole help of the program, on one screen: its commands by purpose, with a line each."""
    lines = ["usage: lwptv COMMAND [OPTIONS]     Merge fine-tuned models that keep working outside their domains.", ""]
    for purpose, commands in purposes.items():
        for index, command in enumerate(commands):
            lines.append(f"{'' if index else purpose:<10}{_name(command):<9} {command.run.__doc__}")
    lines += ["", "lwptv COMMAND --help tells more, with an example; lwptv --version the version."]
    return "\n".join([*lines, f"Every command takes {', '.join(SWITCHES)}.", ""])


def epilog(command: ModuleType) -> str:
    """Return a command's examples as the end of its help."""
    return "\n".join(["example:", *(f"  {line}" for line in command.EXAMPLE.splitlines())])


def configured_help(name: str, command: ModuleType) -> str:
    """Return the help of a command that runs a configuration: its own options and the keys, and not the trainer's."""
    from lwptv_lightning.cli.configured import ABOUT, OWN_HELP, options_of

    own = {_usage(option, about): about["help"] for option, about in options_of(name).items()}
    parts = [
        f"usage: lwptv {name} --config FILE [OPTIONS]",
        fill(ABOUT.get(name, command.run.__doc__ or ""), _WIDTH),
        "options:\n" + _listed({"--config FILE": "the configuration", "--print_config": "print what it says", **own}),
        "keys of the configuration, each an option too, such as --recipe.ratio 0.5:\n"
        + _listed({**OWN_HELP, "trainer": _TRAINER}),
        "of every command:\n"
        + _listed({"-h, --help": "show this page", "--help.trainer": "show all options", **SWITCHES}),
        epilog(command),
    ]
    return "\n\n".join(parts)


def _listed(entries: Mapping[str, str]) -> str:
    lines = (f"  {name:<24}  {text}" for name, text in entries.items())
    return "\n".join(fill(line, _WIDTH, subsequent_indent=" " * 28, break_on_hyphens=False) for line in lines)


def _usage(option: str, about: Mapping[str, Any]) -> str:
    return f"--{option}" if about.get("nargs") else f"--{option} VALUE"


def _name(command: ModuleType) -> str:
    return command.__name__.rpartition(".")[2]
