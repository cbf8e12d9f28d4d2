"""``lwptv sweep``: many recipes in one pass over the sets of a configuration file."""

import argparse

from lwptv_lightning.cli.configured import configured, leave_reports_out, option, output, take_statistics


def run(options: argparse.Namespace) -> None:
    """Compare the recipes of a configuration file on the same samples."""
    from rich.console import Console

    from lwptv_lightning.files import write_whole
    from lwptv_lightning.recipe import make_recipe
    from lwptv_lightning.report import ResultRow, ResultTable, print_table
    from lwptv_lightning.search import sweep

    with configured("sweep", options.arguments) as made:
        recipes = {name: make_recipe(given) for name, given in option(made, "recipes").items()}
        path = None if made.config["out"] is None else output(made)
        take_statistics(made, *recipes.values())
        leave_reports_out(made)
        found = sweep(made.trainer, made.model, recipes, made.datamodule.loaders)
        rows = [ResultRow(name, found.figures(name), found.seconds[name]) for name in found.names]
        if made.trainer.is_global_zero:
            table = ResultTable(rows)
            print_table(table.rich(), Console())
            if path is not None:
                write_whole(path, table.csv())
