"""``lwptv extract``, and what ``lwptv merge --as-lora`` has in common with it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwptv_lightning.cli import arguments
from lwptv_lightning.cli.from_config import add_config, fill_in
from lwptv_lightning.cli.results import Result, Shown
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import parse_bytes, printable

if TYPE_CHECKING:
    from lwptv_lightning.task_vectors import TaskVectors

EXAMPLE = "lwptv extract base.safetensors cats.safetensors --rank 2 --exclude 'fc.*' --out adapter"
_RANK = "a number, a fraction of each layer's squared norm to keep, or full"
_DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("base", help="checkpoint of the base model: a file, a folder or hf-hub:owner/model")
    parser.add_argument("expert", help="what was fine-tuned from it")
    parser.add_argument("--rank", required=True, help=_RANK)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the adapter's folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an adapter that is there")
    parser.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="tensors to leave out")
    parser.add_argument("--ema", action="store_true", default=None, help="take the expert's averaged weights")
    parser.add_argument("--device", help="where to compute, such as cuda")
    parser.add_argument("--max-memory", metavar="SIZE", help="what reading may hold in memory, such as 512MB")
    add_adapter(parser)
    arguments.add_naming(parser)
    add_config(parser)


def add_adapter(parser: argparse._ActionsContainer) -> None:
    """Add how an adapter is written."""
    parser.add_argument("--factor-dtype", choices=_DTYPES, help="dtype of an adapter's factors; default: float32")
    parser.add_argument(
        "--drop-rest", action="store_true", help="write an adapter without changed tensors that it cannot hold"
    )


def add_as_lora(parser: argparse._ActionsContainer) -> None:
    """Add what asks a merge for an adapter."""
    parser.add_argument("--as-lora", metavar="RANK", help=f"write a LoRA adapter of PEFT to the folder --out: {_RANK}")
    add_adapter(parser)


def require_no_adapter(options: argparse.Namespace) -> None:
    """Raise where an option of an adapter is given to a merge that makes none."""
    for option, given in (("--factor-dtype", options.factor_dtype), ("--drop-rest", options.drop_rest)):
        if given:
            raise ValueError(f"{option} is of an adapter, and needs --as-lora.")


def run(options: argparse.Namespace) -> Result:
    """Write what fine-tuning changed as a LoRA adapter of PEFT."""
    from lwptv_lightning.task_vectors import TaskVectors

    fill_in(options)
    naming = arguments.naming_options(options)
    require_place(options.out, options.rank, options.overwrite)
    costs: dict[str, Any] = {"device": arguments.usable_device("--device", options.device)}
    if options.max_memory is not None:
        costs["max_memory"] = parse_bytes("--max-memory", options.max_memory)
    given = {"exclude": options.exclude, "ema": options.ema, **naming}
    vectors = TaskVectors.open(options.base, {"expert": options.expert}, **given)
    return write(vectors, MergeRecipe(scale=1.0), options, options.rank, naming["model"], costs)


def require_place(path: Path, rank: str, overwrite: bool) -> None:
    """Raise where no adapter of such a rank can be written to a folder."""
    from lwptv_lightning.merging import parse_rank, require_adapter_place

    parse_rank(rank)
    try:
        require_adapter_place(path, overwrite=overwrite)
    except OSError as error:
        raise type(error)(f"--out {error.strerror or error}") from error


def write(
    vectors: TaskVectors,
    recipe: MergeRecipe,
    options: argparse.Namespace,
    rank: str,
    model: Any,
    costs: dict[str, Any],
) -> Result:
    """Write an adapter and say what is in it, and what is not."""
    import torch

    from lwptv_lightning.engine import Execution
    from lwptv_lightning.merging import save_adapter
    from lwptv_lightning.report import adapter_summary, adapter_table

    costs = {name: value for name, value in costs.items() if value is not None and name != "max_shard_size"}
    if (device := costs.pop("device", None)) is not None:
        costs["execution"] = Execution(device=torch.device(device))
    saved = save_adapter(
        vectors,
        recipe,
        options.out,
        rank,
        model=model,
        stored_dtype=getattr(torch, options.factor_dtype or "float32"),
        drop_rest=options.drop_rest,
        overwrite=options.overwrite,
        **costs,
    )
    shown: list[Shown] = [
        adapter_table(saved),
        adapter_summary(saved),
        printable(f"The adapter stands in {saved.path}"),
    ]
    return Result({"out": saved.path, "recipe": recipe.to_dict(), **saved.to_dict()}, shown)
