"""``lwptv check``."""

import argparse

from lwptv_lightning.cli.arguments import add_checkpoints, checkpoint_options
from lwptv_lightning.cli.from_config import fill_in
from lwptv_lightning.cli.results import Result

EXAMPLE = "lwptv check base.safetensors cats=cats.safetensors cars=cars.safetensors --exclude 'fc.*'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_checkpoints(parser)
    parser.add_argument("--headers-only", action="store_true", help="read no tensor: names, shapes and dtypes alone")


def run(options: argparse.Namespace) -> Result:
    """Say whether checkpoints belong together."""
    from lwptv_lightning.inspection import check, check_tables

    fill_in(options)
    findings = check(options.base, read=not options.headers_only, **checkpoint_options(options))
    passed = all(found.passed for found in findings)
    return Result({"passed": passed, "tasks": findings}, check_tables(findings), passed)
