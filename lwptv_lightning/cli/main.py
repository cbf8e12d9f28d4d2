"""The command ``lwptv``. A subcommand's imports happen when that subcommand is used, so that help is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwptv_lightning import __version__


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        help: One line.
        add_arguments: Declares its arguments.
        run: Does the work.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: What follows the program's name; by default what the shell gave.

    Raises:
        SystemExit: On ``--help``, on wrong arguments, and with code 1 and one line of text on bad input.

    Example:
        >>> main(["scores"])  # doctest: +ELLIPSIS
        mean_abs ...
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # LightningCLI has a parser of its own, which takes all that follows.
    if given[:1] == ["validate"]:
        options = argparse.Namespace(command="validate", arguments=given[1:])
    else:
        options = _parser(given[0] if given else None).parse_args(given)
    try:
        COMMANDS[options.command].run(options)
    except (ValueError, OSError, TypeError) as error:
        sys.exit(f"lwptv {options.command}: {error}")


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lwptv", description="Merge fine-tuned models that keep working outside their training domains."
    )
    parser.add_argument("--version", action="version", version=f"lwptv-lightning {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.help)
        # Declaring the arguments of a command may import what they can be chosen from.
        if name == chosen:
            command.add_arguments(subparser)
    return parser


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("lwptv_demo"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="processes that share the evaluation")
    parser.add_argument("--full", action="store_true", help="random masks and the coefficient sweep for every rule")
    parser.add_argument("--size", type=int, default=150, metavar="N", help="images in each test set (default: 150)")


def _demo(options: argparse.Namespace) -> None:
    from lwptv_lightning.zoo import run_demo

    for name in ("devices", "size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(options, name)}.")
    run_demo(options.out, devices=options.devices, full=options.full, size=options.size)


def _merge_arguments(parser: argparse.ArgumentParser) -> None:
    from lwptv_lightning.registry import COUNTS, GRANULARITIES, RANKINGS

    _task_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument("--max-memory", metavar="SIZE", help="what the merge may hold in memory, such as 512MB")
    parser.add_argument("--max-shard-size", metavar="SIZE", default="5GB", help="a larger model is written in shards")
    parser.add_argument("--recipe", type=Path, metavar="JSON", help="a recipe's file; the options below change it")
    parser.add_argument(
        "--rule", metavar="NAME", help="a merging rule that `lwptv rules` lists (default: task_arithmetic)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a hyper-parameter of the rule, such as density=0.1",
    )
    parser.add_argument("--scale", type=float, help="scaling coefficient (default: the rule's published one)")
    parser.add_argument(
        "--score", metavar="NAME", help="a saliency score that `lwptv scores` lists; reversed with --score=-NAME"
    )
    parser.add_argument("--ratio", type=float, help="fraction of layers to prune of each task vector, in [0, 1]")
    parser.add_argument("--granularity", choices=GRANULARITIES)
    parser.add_argument("--ranking", choices=RANKINGS)
    parser.add_argument("--count", choices=COUNTS)
    parser.add_argument("--keep", action="append", metavar="GLOB", help="layers that are never pruned")
    parser.add_argument("--prune", action="append", metavar="GLOB", help="layers that are always pruned")
    parser.add_argument("--seed", type=int, help="for the score 'random'")
    parser.add_argument("--device", help="where to compute, such as cuda")


def _task_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", help="checkpoint of the base model: a file, a folder or hf-hub:owner/model")
    parser.add_argument(
        "tasks",
        nargs="+",
        metavar="NAME=CHECKPOINT",
        help="a task's name and its fine-tuned checkpoint, LoRA adapter or task vector",
    )
    parser.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="tensors that are not merged")
    parser.add_argument("--ema", action="store_true", default=None, help="take the tasks' averaged weights")
    _naming_arguments(parser)


def _naming_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prefix", help="what the wanted names start with in Lightning checkpoints")
    parser.add_argument("--model", metavar="NAME", help="the timm model whose tensor names all checkpoints are given")
    parser.add_argument(
        "--model-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of timm.create_model, such as num_classes=0",
    )


def _opening_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of how tensors are named, for the functions that open checkpoints."""
    given: dict[str, Any] = {"prefix": options.prefix, "model": None}
    if options.model is not None:
        import timm

        arguments = {name: _value(text) for name, text in _pairs("--model-option", options.model_option).items()}
        try:
            given["model"] = timm.create_model(options.model, pretrained=False, **arguments)
        except RuntimeError as error:  # what timm raises for an unknown name
            raise ValueError(f"--model: {error}") from error
    elif options.model_option:
        raise ValueError("--model-option needs --model.")
    return given


def _check(options: argparse.Namespace) -> None:
    from rich.console import Console

    from lwptv_lightning.inspection import check, check_tables
    from lwptv_lightning.report import print_table

    findings = check(
        options.base,
        _pairs("a task", options.tasks),
        exclude=options.exclude,
        ema=options.ema,
        read=not options.headers_only,
        **_opening_options(options),
    )
    for table in check_tables(findings):
        print_table(table, Console())
    if not all(found.passed for found in findings):
        sys.exit(1)


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    _task_arguments(parser)
    parser.add_argument("--headers-only", action="store_true", help="read no tensor: names, shapes and dtypes alone")


def _diff_arguments(parser: argparse.ArgumentParser) -> None:
    from lwptv_lightning.registry import GRANULARITIES

    parser.add_argument("first", help="a checkpoint")
    parser.add_argument("second", help="another, an adapter or a task vector of the first")
    parser.add_argument("--granularity", choices=GRANULARITIES, default="module", help="default: %(default)s")
    _naming_arguments(parser)


def _diff(options: argparse.Namespace) -> None:
    from rich.console import Console

    from lwptv_lightning.inspection import diff, diff_table
    from lwptv_lightning.report import print_table

    differences = diff(options.first, options.second, options.granularity, **_opening_options(options))
    print_table(diff_table(differences), Console())


_RECIPE_OPTIONS = ("scale", "score", "ratio", "granularity", "ranking", "count", "keep", "prune", "seed")


def _merge(options: argparse.Namespace) -> None:
    from lwptv_lightning.checkpoints import index_of, require_safetensors_path
    from lwptv_lightning.merging import save_merged
    from lwptv_lightning.task_vectors import TaskVectors

    require_safetensors_path(options.out)
    for path in (options.out, index_of(options.out)):
        if path.exists() and not options.overwrite:
            raise ValueError(f"{path} exists; give another --out or --overwrite.")
    recipe = _recipe(options)
    vectors = TaskVectors.open(
        options.base,
        _pairs("a task", options.tasks),
        exclude=options.exclude,
        ema=options.ema,
        **_opening_options(options),
    )
    written = save_merged(
        vectors,
        recipe,
        options.out,
        device=options.device,
        max_memory=options.max_memory,
        max_shard_size=options.max_shard_size,
    )
    print(f"Merged {', '.join(vectors.tasks)} by {recipe.describe()} into {written}")


def _recipe(options: argparse.Namespace) -> Any:
    import json

    from lwptv_lightning.recipe import MergeRecipe

    values = json.loads(options.recipe.read_text()) if options.recipe else {}
    if options.rule is not None:
        values["rule"] = {"name": options.rule}
    if options.set:
        rule = values.setdefault("rule", {"name": "task_arithmetic"})
        rule.update({name: _value(text) for name, text in _pairs("--set", options.set).items()})
    values |= {name: getattr(options, name) for name in _RECIPE_OPTIONS if getattr(options, name) is not None}
    return MergeRecipe.from_dict(values)


def _value(text: str) -> Any:
    """Read a hyper-parameter as JSON, or as a plain word."""
    import json

    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _pairs(what: str, items: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{what} must be given as NAME=VALUE, not {item!r}.")
        if name in pairs:
            raise ValueError(f"{what} is given twice: {name!r}.")
        pairs[name] = value
    return pairs


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def _scores(options: argparse.Namespace) -> None:
    from lwptv_lightning.saliency import describe_scores

    for name, line in describe_scores().items():
        print(f"{name:12} {line}")


def _rules_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="as the page docs/rules.md")


def _rules(options: argparse.Namespace) -> None:
    from lwptv_lightning.rules import rule_entries, rules_markdown

    if options.markdown:
        print(rules_markdown(), end="")
        return
    for entry in rule_entries():
        needs = f"needs {entry.needs} statistics" if entry.needs else "needs no data"
        print(f"{entry.name}: {entry.summary}")
        print(f"    {entry.paper}; {needs}; scope: {entry.scope}; published scale {entry.scale:g}")
        for parameter in entry.parameters:
            print(f"    {parameter}")


def _zoo_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="train the zoo's base and experts from scratch")
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write the weights")
    build.add_argument("--seed", type=int, default=0)


def _zoo(options: argparse.Namespace) -> None:
    from lwptv_lightning import zoo

    zoo.build(options.out, seed=options.seed)
    print(f"Wrote the zoo to {options.out}")


def _validate(options: argparse.Namespace) -> None:
    from lwptv_lightning.cli.validate import validate

    validate(options.arguments)


COMMANDS = {
    "demo": Command("Merge the embedded zoo and show ID and OOD accuracy.", _demo_arguments, _demo),
    "merge": Command("Merge checkpoints into one file.", _merge_arguments, _merge),
    "check": Command("Say whether checkpoints belong together; exit code 1 on a problem.", _check_arguments, _check),
    "diff": Command("Say where two checkpoints differ, by layer.", _diff_arguments, _diff),
    "validate": Command("Validate a merged model as a configuration file says.", _no_arguments, _validate),
    "rules": Command("List the merging rules.", _rules_arguments, _rules),
    "scores": Command("List the saliency scores.", _no_arguments, _scores),
    "zoo": Command("Train the embedded zoo again.", _zoo_arguments, _zoo),
}
