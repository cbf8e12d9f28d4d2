"""``lwptv validate``: the merged model of a configuration file on its ID and OOD sets, beside base and experts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwptv_lightning.cli.configured import configured, leave_reports_out, take_statistics
from lwptv_lightning.cli.ending import WrongArgumentsError
from lwptv_lightning.cli.results import Result, plain
from lwptv_lightning.cli.running import running
from lwptv_lightning.registry import printable

if TYPE_CHECKING:
    from lwptv_lightning.report import ResultRow, ResultTable

EXAMPLE = """lwptv validate --config suite.yaml
lwptv validate --config suite.yaml --recipe.ratio 0.5 --only_merged --save pruned --out pruned.csv"""
_TABLES = (".csv", ".json")


def run(options: argparse.Namespace) -> Result:
    """Validate a merged model as a configuration file says, with base and experts."""
    from lwptv_lightning.files import write_whole
    from lwptv_lightning.report import ResultTable

    with configured("validate", options.arguments) as made:
        saves, out = made.config["save"], made.config["out"]
        if saves is not None:
            _require_place(made, saves)
        if out is not None:
            _require_table(out, made.config["overwrite"])
        take_statistics(made, made.model.recipe)
        reports = _silenced(made.trainer)
        with running(made.trainer):
            merged, written = _merged(made, saves)
            others = [] if made.config["only_merged"] else _others(made)
        table = ResultTable([*others, merged])
        values = _values(made, table, written, out)
        if out is not None and made.trainer.is_global_zero:
            # Looked at before, as several processes of one run write the same.
            text = table.csv() if out.endswith(".csv") else json.dumps(plain(values), indent=2) + "\n"
            write_whole(out, text, overwrite=True)
        said = [f"The report is in {folder}" for folder in reports]
        said += [] if written is None else [f"The merged model is in {written}"]
        said += [f"The {treatment}."] if (treatment := values["treatment"]) else []
        return Result({**values, "reports": reports}, [table, *map(printable, said)])


def _merged(made: Any, path: str | None) -> tuple[ResultRow, Path | None]:
    """Validate the merged model, whose figures are what they are without the others, and write it."""
    module = made.model
    row = _row(made, "", made.trainer.validate(module, datamodule=made.datamodule, verbose=False))
    # Looked at before, as several processes of one run write the same.
    written = None if path is None else module.save_merged(path, heads=bool(module.heads))
    return row, written


def _others(made: Any) -> list[ResultRow]:
    """Validate base and experts, each under the heads of the sets, by the metrics of the merged model."""
    from lwptv_lightning.evaluation import holding, weights_of

    vectors = made.model.held_vectors
    if vectors is None:
        return []
    leave_reports_out(made, merges=True)
    rows = []
    for name, task in {"base": None, **{f"expert {task}": task for task in vectors.tasks}}.items():
        with holding(made.model, weights_of(made.model, task)):
            rows.append(_row(made, name, made.trainer.validate(made.model, datamodule=made.datamodule, verbose=False)))
    return rows


def _row(made: Any, name: str, found: list[dict[str, float]]) -> ResultRow:
    from lwptv_lightning.evaluation import no_fractions
    from lwptv_lightning.report import ResultRow

    module = made.model
    figures = {name: figure for part in found for name, figure in part.items()}
    plain = no_fractions(module.metrics.named(), figures)
    return ResultRow(name or (module.installed or module.recipe).describe(), figures, plain=plain)


def _values(made: Any, table: ResultTable, written: Path | None, out: str | None) -> dict[str, Any]:
    recipe = made.model.installed or made.model.recipe
    kinds = ["base", *("expert" for _ in table.rows[2:]), "merged"][-len(table.rows) :]
    rows = [{**row, "kind": kind} for row, kind in zip(table.values(), kinds, strict=True)]
    return {
        "rows": rows,
        "recipe": recipe.to_dict(),
        "treatment": made.model.treatment,
        "saved": written,
        "out": out,
    }


def _silenced(trainer: Any) -> list[Path]:
    """Let reports write their files alone, as the table that they would print is printed here; return where to."""
    from lwptv_lightning.callbacks import MergeReport

    reports = [callback for callback in trainer.callbacks if isinstance(callback, MergeReport)]
    for report in reports:
        report.quiet = True
    return [report.folder for report in reports]


def _require_table(path: str, overwrite: bool) -> None:
    from lwptv_lightning.checkpoints import require_writable

    if not path.endswith(_TABLES):
        raise WrongArgumentsError(f"--out: {path!r} must end in {' or '.join(_TABLES)}.")
    require_writable(path, overwrite=overwrite)


def _require_place(made: Any, path: str) -> None:
    from lwptv_lightning.checkpoints import require_place
    from lwptv_lightning.evaluation import heads_path
    from lwptv_lightning.merging import require_output

    require_output(path, overwrite=made.config["overwrite"])
    if made.model.heads and Path(path).suffix == ".safetensors":
        require_place(heads_path(path), overwrite=made.config["overwrite"])
