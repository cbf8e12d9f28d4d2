"""``lwptv scores``."""

import argparse


def run(options: argparse.Namespace) -> None:
    """List the saliency scores."""
    from lwptv_lightning.saliency import describe_scores

    for name, line in describe_scores().items():
        print(f"{name:12} {line}")
