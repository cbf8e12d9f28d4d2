"""The command ``lwptv``; one file for each subcommand."""

from lwptv_lightning.cli.main import main

__all__ = ["main"]
