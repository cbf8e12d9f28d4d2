"""``lwptv validate``: LightningCLI over functions that make a `MergeModule` and its data from plain values.

A configuration names one function for ``model`` and one for ``data``; ``examples/demo.yaml`` shows the form. Functions
or classes of your own, in any importable module, do as well.
"""

import argparse
import warnings
from pathlib import Path

from lwptv_lightning.cli.ending import WrongArgumentsError
from lwptv_lightning.registry import printable

_SAVE = "where to write the merged model that was validated, a .safetensors file or a folder; with its heads, if any"


def run(options: argparse.Namespace) -> None:
    """Validate a merged model as a configuration file says."""
    # Imported here, because the other commands do not wait for Lightning.
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from lwptv_lightning.checkpoints import require_place
    from lwptv_lightning.evaluation import EvaluationSuite, MergeModule, heads_path
    from lwptv_lightning.merging import require_output

    class Command(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_argument("--save", type=str | None, default=None, help=_SAVE)
            parser.add_argument("--overwrite", type=bool, default=False, help="replace a model that is there")

    try:
        with warnings.catch_warnings():
            # Lightning suspects a mistake where its arguments are given and the program has some of its own.
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            cli = Command(
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
        if (path := cli.config["save"]) is not None:
            require_output(path, overwrite=cli.config["overwrite"])
            if cli.model.heads and Path(path).suffix == ".safetensors":
                require_place(heads_path(path), overwrite=cli.config["overwrite"])
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
        if path is not None:
            # Looked at before, as several processes of one run write the same.
            written = cli.model.save_merged(path, heads=bool(cli.model.heads))
            print(printable(f"The merged model is in {written}"))
    except argparse.ArgumentError as error:
        raise WrongArgumentsError(str(error)) from error
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except ValueError as error:
        raise _as_raised(error) from error


def _as_raised(error: BaseException) -> BaseException:
    """Return what a function of the configuration raised, of which jsonargparse says that no type fits."""
    while str(error).startswith("Does not validate against any of the Union subtypes") and error.__cause__ is not None:
        error = error.__cause__
    return error
