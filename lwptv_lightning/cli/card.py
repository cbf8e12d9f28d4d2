"""``lwptv card``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwptv_lightning.cli.results import Result
from lwptv_lightning.registry import printable

if TYPE_CHECKING:
    from lwptv_lightning.recipe import MergeRecipe

EXAMPLE = "lwptv card merged --title 'Cats and cars' --overwrite"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "path", metavar="DIR", help="what lwptv merge wrote: a folder, a file or the index of its shards"
    )
    parser.add_argument("--results", type=Path, metavar="CSV", help="the results.csv of a report, with the figures")
    parser.add_argument("--row", metavar="NAME", help="the model's row there, by default that of its recipe")
    parser.add_argument("--base", metavar="CHECKPOINT", help="the base, by whose card licence and use are known")
    parser.add_argument("--title", metavar="TEXT", help="the card's title")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write it, by default README.md beside the model"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def run(options: argparse.Namespace) -> Result:
    """Write the model card of a merged model."""
    from lwptv_lightning.checkpoints import Provenance, index_of, open_checkpoint, require_writable
    from lwptv_lightning.files import write_whole
    from lwptv_lightning.merging import BaseCard, card_of
    from lwptv_lightning.recipe import MergeRecipe
    from lwptv_lightning.sharing import CARD, read_results

    given = Path(options.path).expanduser()
    path = given if given.exists() or not index_of(given).exists() else index_of(given)
    out = options.out or (path if path.is_dir() else path.parent) / CARD
    if not path.exists():
        open_checkpoint(path)  # which says so
    require_writable(out, overwrite=options.overwrite)
    about: dict[str, Any] = {} if options.title is None else {"name": options.title}
    if options.base is not None:
        about["base"] = BaseCard.beside(open_checkpoint(options.base).folder)
    if options.results is not None:
        made = Provenance.of(open_checkpoint(path, prefix=""))
        about |= _measured(MergeRecipe.from_dict(made.recipe or {}), read_results(options.results), options)
    elif options.row is not None:
        raise ValueError("--row needs --results.")
    write_whole(out, card_of(path, **about), overwrite=options.overwrite)
    return Result({"out": out}, [printable(f"Wrote {out}")])


def _measured(recipe: MergeRecipe, results: dict[str, dict[str, float]], options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a recipe's model among some results, and the others as what they are measured against."""
    from lwptv_lightning.sharing import own_row

    figures = own_row(results, options.row or recipe.describe(), options.results)
    unpruned = recipe.replace(ratio=0.0, keep=(), prune=(), elements=None).describe()
    return {
        "figures": figures,
        "controls": {"unpruned" if name == unpruned else name: row for name, row in results.items()},
    }
