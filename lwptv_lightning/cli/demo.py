"""``lwptv demo``."""

import argparse
from pathlib import Path

from lwptv_lightning.cli.results import Result

EXAMPLE = "lwptv demo --out demo --size 2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--out", type=Path, default=Path("lwptv_demo"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="write also to a folder that holds other files")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="processes that share the evaluation")
    parser.add_argument("--full", action="store_true", help="random masks and the coefficient sweep for every rule")
    parser.add_argument("--size", type=int, default=150, metavar="N", help="images in each test set (default: 150)")


def run(options: argparse.Namespace) -> Result | None:
    """Merge the embedded zoo and show ID and OOD accuracy."""
    from lwptv_lightning.zoo import run_demo

    for name in ("devices", "size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(options, name)}.")
    given = {name: getattr(options, name) for name in ("devices", "full", "size", "overwrite")}
    demo = run_demo(options.out, **given)
    return Result({"out": options.out, "rows": demo.table.values(), "best": demo.best, "chosen": demo.chosen})
