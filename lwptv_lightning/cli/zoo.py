"""``lwptv zoo``."""

import argparse
from pathlib import Path

from lwptv_lightning.registry import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="train the zoo's base and experts from scratch")
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write the weights")
    build.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> None:
    """Train the embedded zoo again."""
    from lwptv_lightning import zoo

    zoo.build(options.out, seed=options.seed)
    print(printable(f"Wrote the zoo to {options.out}"))
