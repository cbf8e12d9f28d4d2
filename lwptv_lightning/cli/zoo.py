"""``lwptv zoo``."""

import argparse
from pathlib import Path

from lwptv_lightning.cli.results import Result
from lwptv_lightning.registry import printable

EXAMPLE = "lwptv zoo build --out zoo --steps 5 --expert-steps 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="train the zoo's base and experts from scratch")
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write the weights")
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--steps", type=int, default=1500, metavar="N", help="of the base (default: %(default)s)")
    build.add_argument("--expert-steps", type=int, default=250, metavar="N", help="of each (default: %(default)s)")


def run(options: argparse.Namespace) -> Result:
    """Train the embedded zoo again."""
    from lwptv_lightning import zoo

    zoo.build(options.out, seed=options.seed, steps=options.steps, expert_steps=options.expert_steps)
    return Result({"out": options.out}, [printable(f"Wrote the zoo to {options.out}")])
