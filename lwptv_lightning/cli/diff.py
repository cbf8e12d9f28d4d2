"""``lwptv diff``."""

import argparse

from lwptv_lightning.cli.arguments import add_naming, naming_options
from lwptv_lightning.registry import GRANULARITIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("first", help="a checkpoint")
    parser.add_argument("second", help="another, an adapter or a task vector of the first")
    parser.add_argument("--granularity", choices=GRANULARITIES, default="module", help="default: %(default)s")
    add_naming(parser)


def run(options: argparse.Namespace) -> None:
    """Say where two checkpoints differ, by layer."""
    from rich.console import Console

    from lwptv_lightning.inspection import diff, diff_table
    from lwptv_lightning.report import print_table

    differences = diff(options.first, options.second, options.granularity, **naming_options(options))
    print_table(diff_table(differences), Console())
