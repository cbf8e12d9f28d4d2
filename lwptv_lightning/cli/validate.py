"""``lwptv validate``: LightningCLI over functions that make a `MergeModule` and its data from plain values.

A configuration names one function for ``model`` and one for ``data``; ``examples/demo.yaml`` shows the form. Functions
or classes of your own, in any importable module, do as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from lightning.pytorch.cli import LightningCLI

from lwptv_lightning.evaluation import EvaluationSuite, MergeModule


def validate(arguments: Sequence[str]) -> None:
    """Run ``lwptv validate`` with its arguments, such as ``["--config", "demo.yaml"]``."""
    with warnings.catch_warnings():
        # Lightning suspects a mistake where its arguments are given and the program has some of its own.
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        cli = LightningCLI(
            MergeModule,
            EvaluationSuite,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            save_config_callback=None,
            seed_everything_default=False,
            args=list(arguments),
            parser_kwargs={"prog": "lwptv validate", "description": "Validate a merged model over ID and OOD sets."},
        )
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
