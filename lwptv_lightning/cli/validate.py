"""``lwptv validate``: LightningCLI over functions that make a `MergeModule` and its data from plain values."""

import argparse
from pathlib import Path
from typing import Any

from lwptv_lightning.cli.configured import configured, say, take_statistics


def run(options: argparse.Namespace) -> None:
    """Validate a merged model as a configuration file says."""
    with configured("validate", options.arguments) as made:
        if (path := made.config["save"]) is not None:
            _require_place(made, path)
        take_statistics(made, made.model.recipe)
        found = made.trainer.validate(made.model, datamodule=made.datamodule, verbose=False)
        _print_figures(made, found)
        if path is not None:
            # Looked at before, as several processes of one run write the same.
            written = made.model.save_merged(path, heads=bool(made.model.heads))
            say(made, f"The merged model is in {written}")


def _print_figures(made: Any, found: list[dict[str, float]]) -> None:
    """Print the figures, unless a report of the configuration does so."""
    from rich.console import Console

    from lwptv_lightning.callbacks import MergeReport
    from lwptv_lightning.evaluation import no_fractions
    from lwptv_lightning.report import ResultRow, ResultTable, print_table

    module, trainer = made.model, made.trainer
    if not trainer.is_global_zero or any(isinstance(callback, MergeReport) for callback in trainer.callbacks):
        return
    figures = {name: figure for part in found for name, figure in part.items()}
    plain = no_fractions(module.metrics.named(), figures)
    row = ResultRow((module.installed or module.recipe).describe(), figures, plain=plain)
    print_table(ResultTable([row]).rich(), Console())


def _require_place(made: Any, path: str) -> None:
    from lwptv_lightning.checkpoints import require_place
    from lwptv_lightning.evaluation import heads_path
    from lwptv_lightning.merging import require_output

    require_output(path, overwrite=made.config["overwrite"])
    if made.model.heads and Path(path).suffix == ".safetensors":
        require_place(heads_path(path), overwrite=made.config["overwrite"])
