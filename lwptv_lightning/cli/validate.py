"""``lwptv validate``: LightningCLI over functions that make a `MergeModule` and its data from plain values."""

import argparse
from pathlib import Path
from typing import Any

from lwptv_lightning.cli.configured import configured, take_statistics
from lwptv_lightning.registry import printable


def run(options: argparse.Namespace) -> None:
    """Validate a merged model as a configuration file says."""
    with configured("validate", options.arguments) as made:
        if (path := made.config["save"]) is not None:
            _require_place(made, path)
        take_statistics(made, made.model.recipe)
        made.trainer.validate(made.model, datamodule=made.datamodule, verbose=False)
        if path is not None:
            # Looked at before, as several processes of one run write the same.
            written = made.model.save_merged(path, heads=bool(made.model.heads))
            print(printable(f"The merged model is in {written}"))


def _require_place(made: Any, path: str) -> None:
    from lwptv_lightning.checkpoints import require_place
    from lwptv_lightning.evaluation import heads_path
    from lwptv_lightning.merging import require_output

    require_output(path, overwrite=made.config["overwrite"])
    if made.model.heads and Path(path).suffix == ".safetensors":
        require_place(heads_path(path), overwrite=made.config["overwrite"])
