"""``lwptv validate``: LightningCLI over functions that make a `MergeModule` and its data from plain values.

A configuration names one function for ``model`` and one for ``data``; ``examples/demo.yaml`` shows the form. Functions
or classes of your own, in any importable module, do as well.
"""

import argparse
import warnings

from lwptv_lightning.cli.ending import WrongArgumentsError


def run(options: argparse.Namespace) -> None:
    """Validate a merged model as a configuration file says."""
    # Imported here, because the other commands do not wait for Lightning.
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from lwptv_lightning.evaluation import EvaluationSuite, MergeModule

    try:
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
                args=options.arguments,
                parser_kwargs={
                    "prog": "lwptv validate",
                    "description": "Validate a merged model over ID and OOD sets.",
                    "exit_on_error": False,  # it would print the usage, and names as they are
                },
            )
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    except argparse.ArgumentError as error:
        raise WrongArgumentsError(str(error)) from error
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
