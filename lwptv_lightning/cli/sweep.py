"""``lwptv sweep``: many recipes in one pass over the sets of a configuration file."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lwptv_lightning.cli.configured import configured, leave_reports_out, mixed, option, output, take_statistics
from lwptv_lightning.cli.results import Result, Shown
from lwptv_lightning.cli.running import running
from lwptv_lightning.registry import printable

if TYPE_CHECKING:
    from lwptv_lightning.report import ResultTable
    from lwptv_lightning.search import SweepResult

EXAMPLE = "lwptv sweep --config suite.yaml --recipes '{plain: ties, pruned: {rule: ties, ratio: 0.5}}'"


def run(options: argparse.Namespace) -> Result:
    """Compare the recipes of a configuration file on the same samples."""
    from lwptv_lightning.files import write_whole
    from lwptv_lightning.recipe import make_recipe
    from lwptv_lightning.report import ResultRow, ResultTable
    from lwptv_lightning.search import sweep

    with configured("sweep", options.arguments) as made:
        recipes = {name: make_recipe(given) for name, given in option(made, "recipes").items()}
        path = None if made.config["out"] is None else output(made)
        take_statistics(made, *recipes.values())
        leave_reports_out(made)
        with running(made.trainer, shown=False):  # a sweep shows its own progress, over all passes
            found = sweep(made.trainer, made.model, recipes, made.datamodule.loaders, **_asked(made, path))
        notes, reason = _choices(found)
        rows = [ResultRow(name, found.figures(name), found.seconds[name], notes.get(name, "")) for name in found.names]
        table = ResultTable(rows)
        if made.trainer.is_global_zero and path is not None:
            write_whole(path, _as_file(table))
        values = {"rows": table.values(), "recipes": {name: recipe.to_dict() for name, recipe in recipes.items()}}
        shown: list[Shown] = [table, *([printable(reason)] if reason else [])]
        return Result({**values, "chosen": notes, "not_chosen": reason or None, "out": path}, shown)


def _asked(made: Any, path: str | None) -> dict[str, Any]:
    """Return what the configuration says of a sweep besides its recipes and sets."""
    validation = getattr(made.datamodule, "validation", {})
    return {
        "store": made.config["store"] or (None if path is None else f"{path}.store"),
        "samples": {name: mixed(loader) for name, loader in validation.items()},
        "recalibrate": bool(made.config["recalibrate"]),
    }


def _as_file(table: ResultTable) -> str:
    """Return the table as a file holds it: without seconds, so that a sweep that went on ends with the same file."""
    return replace(table, rows=[replace(row, seconds=None) for row in table.rows]).csv()


def _choices(found: SweepResult) -> tuple[dict[str, str], str]:
    """Return which recipes the ID sets' averages choose, and why they choose none where there are such sets."""
    from lwptv_lightning.search import choices

    if not any(loader.startswith("id/") for loader in found.outcomes):
        return {}, ""
    try:
        return choices(found), ""
    except ValueError as error:  # the figures are there, and took long
        return {}, f"No recipe is chosen: {error}"
