"""``lwptv diff``."""

import argparse

from lwptv_lightning.cli.arguments import add_naming, naming_options
from lwptv_lightning.cli.results import Result
from lwptv_lightning.registry import GRANULARITIES

EXAMPLE = "lwptv diff base.safetensors cats.safetensors --granularity block"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("first", help="a checkpoint")
    parser.add_argument("second", help="another, an adapter or a task vector of the first")
    parser.add_argument("--granularity", choices=GRANULARITIES, default="module", help="default: %(default)s")
    add_naming(parser)


def run(options: argparse.Namespace) -> Result:
    """Say where two checkpoints differ, by layer."""
    from lwptv_lightning.inspection import diff, diff_table

    differences = diff(options.first, options.second, options.granularity, **naming_options(options))
    return Result({"layers": differences}, [diff_table(differences)])
