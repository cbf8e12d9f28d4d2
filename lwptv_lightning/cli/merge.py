"""``lwptv merge``: its options are the declared fields of a recipe."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwptv_lightning.cli import arguments, extract
from lwptv_lightning.cli.from_config import fill_in
from lwptv_lightning.cli.results import Result
from lwptv_lightning.recipe import MODIFIERS, LiNeS, MergeRecipe, make_recipe
from lwptv_lightning.registry import matches, parse_bytes, printable, printable_name, require_known

if TYPE_CHECKING:
    from lwptv_lightning.task_vectors import TaskVectors

EXAMPLE = """lwptv merge base.safetensors cats=cats.safetensors cars=cars.safetensors --exclude 'fc.*' --out both
lwptv merge base.safetensors cats=cats.safetensors --exclude 'fc.*' --rule ties --out ties.safetensors"""

_SET = "a hyper-parameter of the rule, such as density=0.1, or of what stands beside it, such as calibrate.alpha=0.5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    arguments.add_checkpoints(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="what to write: a .safetensors file, or a folder as the base's library has it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the model that is there")
    parser.add_argument(
        "--format", metavar="KIND", help="the kind of folder: timm, transformers, open_clip, safetensors or dcp"
    )
    parser.add_argument(
        "--keep-classifier", action="store_true", help="write the base's classifier where the tasks have their own"
    )
    parser.add_argument(
        "--heads",
        action="store_true",
        help="write the tasks' own classifiers too: <stem>.heads.safetensors, or heads.safetensors in a folder",
    )
    parser.add_argument("--max-memory", metavar="SIZE", help="what the merge may hold in memory, such as 512MB")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="a larger model is written in shards (default: 5GB)")
    parser.add_argument("--device", help="where to compute, such as cuda")
    parser.add_argument(
        "--data-statistics", type=Path, metavar="FILE", help="what CollectDataStatistics wrote, for rules that need it"
    )
    extract.add_as_lora(parser.add_argument_group("LoRA"))
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--recipe", type=Path, metavar="JSON", help="a recipe's file; the options below change it")
    recipe.add_argument(
        "--gates",
        type=Path,
        metavar="JSON",
        help="a recipe's file with learnt coefficients instead; only --scale, --dtype and LiNeS may stand beside it",
    )
    recipe.add_argument("--set", **arguments.SETTINGS, help=_SET)
    arguments.add_fields(recipe, MergeRecipe)
    lines = parser.add_argument_group("LiNeS, a scaling by depth (any of these asks for it)")
    arguments.add_fields(lines, LiNeS, "lines-")


def run(options: argparse.Namespace) -> Result:
    """Merge checkpoints into a file, or into a folder as the base's library has it."""
    from lwptv_lightning.checkpoints import Provenance, open_checkpoint, some_of
    from lwptv_lightning.engine import Stream
    from lwptv_lightning.merging import Loading, rule_of, save_merged, treatment_of
    from lwptv_lightning.task_vectors import TaskVectors

    fill_in(options)
    _require_place(options)
    recipe, costs, opened = _recipe(options), _costs(options), arguments.checkpoint_options(options)
    vectors = TaskVectors.open(options.base, **opened)
    if options.as_lora is not None:
        return extract.write(vectors, recipe, options, options.as_lora, opened["model"], costs)
    if options.heads:
        _require_heads(vectors, opened["model"])
    written = save_merged(vectors, recipe, options.out, overwrite=options.overwrite, **costs)
    heads = _write_heads(vectors, opened["model"], options.out) if options.heads else None
    tasks = ", ".join(map(printable_name, vectors.tasks))
    library = Loading.of(written).library if written.is_dir() else None
    lines = [f"Merged {tasks} by {recipe.describe()} into {written}{f', for {library}' if library else ''}"]
    if heads is not None:
        lines.insert(0, f"The heads of {tasks} are in {heads}")
    said = Provenance.of(open_checkpoint(written))
    if said.left_out:
        lines.append(f"The base's classifier is left out, since the tasks have their own: {some_of(said.left_out)}")
    if kept := [name for name in vectors.headers if matches(name, options.exclude) and name not in said.left_out]:
        lines.append(f"Excluded, and so the base's: {some_of(kept)}")
    lines += said.notes
    if treatment := treatment_of(rule_of(recipe), Stream.of(vectors, data=costs.get("data"))):
        lines.append(f"The {treatment}.")
    values: dict[str, Any] = {"out": written, "heads": heads, "library": library, "tasks": vectors.tasks}
    values |= {"recipe": recipe.to_dict()}
    values |= {"left_out": said.left_out, "excluded": kept, "notes": said.notes, "treatment": treatment}
    return Result(values, [printable(line) for line in lines])


def _write_heads(vectors: "TaskVectors", model: Any, path: Path) -> Path:
    from lwptv_lightning.evaluation import heads_path, own_heads, write_heads

    return write_heads(own_heads(model, vectors), heads_path(path))


def _require_heads(vectors: "TaskVectors", model: Any) -> None:
    if model is None:
        raise ValueError("--heads needs --model, whose classifier the tasks' own ones are like.")
    if not vectors.classifiers:
        raise ValueError("--heads: base and tasks have classifiers of one shape, which are merged: there are no heads.")


def _require_place(options: argparse.Namespace) -> None:
    from lwptv_lightning.checkpoints import require_place
    from lwptv_lightning.merging import require_output

    if options.as_lora is not None:
        for name in ("format", "heads", "keep_classifier", "max_shard_size"):
            if getattr(options, name):
                raise ValueError(f"--{name.replace('_', '-')} is for a whole model, and --as-lora writes an adapter.")
        extract.require_place(options.out, options.as_lora, options.overwrite)
        return
    extract.require_no_adapter(options)
    try:
        require_output(options.out, options.format, overwrite=options.overwrite)
        if options.heads and options.out.suffix == ".safetensors":
            require_place(options.out.with_suffix(".heads.safetensors"), overwrite=options.overwrite)
    except OSError as error:
        raise OSError(f"--out {error.strerror or error}") from error


def _costs(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `save_merged` that no recipe holds."""
    given: dict[str, Any] = {"device": arguments.usable_device("--device", options.device)}
    for name in ("max_memory", "max_shard_size"):
        if (size := getattr(options, name)) is not None:
            given[name] = parse_bytes(f"--{name.replace('_', '-')}", size)
    if options.format is not None:
        given["format"] = options.format
    if options.keep_classifier:
        given["keep_classifier"] = True
    if options.data_statistics is not None:
        from lwptv_lightning.merging import read_data_statistics

        given["data"] = read_data_statistics(options.data_statistics)
    return given


def _recipe(options: argparse.Namespace) -> MergeRecipe:
    changes = arguments.given_fields(options, MergeRecipe)
    if options.gates is not None:
        recipe = _gates(options, changes)
    else:
        usual = make_recipe(getattr(options, "configured_recipe", None) or {})
        recipe = usual if options.recipe is None else MergeRecipe.from_json(options.recipe)
    for field, values in _settings(options.set).items():
        before = changes.get(field, getattr(recipe, field))
        if before is None:
            raise ValueError(f"--set {field}.{next(iter(values))}: the recipe has no {field}; --{field} gives it one.")
        changes[field] = before.to_dict() | values
    if lines := arguments.given_fields(options, LiNeS, "lines-"):
        before = recipe.layer_scaling if isinstance(recipe.layer_scaling, LiNeS) else LiNeS()
        changes["layer_scaling"] = dataclasses.replace(before, **lines)
    return recipe.replace(**changes)


def _settings(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return hyper-parameters by the recipe's field of which they are: ``calibrate.alpha`` of what calibrates."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in arguments.settings("--set", given).items():
        field, dot, parameter = name.rpartition(".")
        if dot:
            require_known("field of a recipe with hyper-parameters", field, ("rule", *MODIFIERS))
        found.setdefault(field or "rule", {})[parameter] = value
    return found


def _gates(options: argparse.Namespace, changes: Mapping[str, Any]) -> MergeRecipe:
    """Return the recipe of a file with coefficients, which were learnt on the parts that it says."""
    beside = [name for name in ("recipe", "set") if getattr(options, name)]
    beside += [name for name in changes if name not in ("scale", "dtype")]
    if beside:
        option = f"--{beside[0].replace('_', '-')}"
        raise ValueError(f"--gates says what to merge and how; {option} cannot stand beside it, but --scale can.")
    recipe = MergeRecipe.from_json(options.gates)
    if recipe.coefficients is None:
        raise ValueError(
            f"--gates {printable(options.gates)}: the recipe there holds no coefficients, which LayerGates learns; "
            "any other recipe goes into --recipe."
        )
    return recipe
