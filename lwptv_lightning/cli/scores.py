"""``lwptv scores``."""

import argparse

from lwptv_lightning.cli.results import Result

EXAMPLE = "lwptv scores"


def run(options: argparse.Namespace) -> Result:
    """List the saliency scores."""
    from lwptv_lightning.saliency import describe_scores

    found = describe_scores()
    return Result({"scores": found}, [f"{name:12} {line}" for name, line in found.items()])
