"""``lwptv check``."""

import argparse
import sys

from lwptv_lightning.cli.arguments import add_checkpoints, checkpoint_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_checkpoints(parser)
    parser.add_argument("--headers-only", action="store_true", help="read no tensor: names, shapes and dtypes alone")


def run(options: argparse.Namespace) -> None:
    """Say whether checkpoints belong together; exit code 1 on a problem."""
    from rich.console import Console

    from lwptv_lightning.inspection import check, check_tables
    from lwptv_lightning.report import print_table

    findings = check(options.base, read=not options.headers_only, **checkpoint_options(options))
    for table in check_tables(findings):
        print_table(table, Console())
    if not all(found.passed for found in findings):
        sys.exit(1)
