"""`model_card`: what a merged model's file says of itself, as the page that the Hugging Face hub shows of it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lwptv_lightning.checkpoints import Checkpoint, CheckpointError, Provenance, hub_name, open_checkpoint
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.merging.base_card import CARD, BaseCard
from lwptv_lightning.merging.card_metadata import card_metadata, heading
from lwptv_lightning.merging.loading import Loading
from lwptv_lightning.merging.output import Beside, Output
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import (
    GRANULARITIES,
    LoaderName,
    encodable,
    literal,
    markdown_table,
    matcher,
    natural_order,
    printable,
    printable_name,
    require_kind,
    shown,
)

THIS = "this model"
"""The row of the merged model itself."""
CONTROLS = {
    "base": "the base",
    "experts": "each fine-tuned model on its own set",
    "unpruned": "the same rule without pruning",
    "smaller scale": "the same rule without pruning, at a smaller coefficient",
}
"""What figures of a merge are measured against, by the name of its row."""
_MOST_LAYERS = 200
"""Names of layers that are listed for a task."""


def model_card(
    made: Provenance,
    figures: Mapping[str, float] | None = None,
    *,
    controls: Mapping[str, Mapping[str, float]] | None = None,
    metric: str = "accuracy",
    names: Iterable[str] = (),
    name: str = "Merged model",
    loading: Loading | None = None,
    base: BaseCard | None = None,
    merged_from: Sequence[str] = (),
) -> str:
    """Return a model card in the hub's form: its metadata as YAML, then Markdown.

    Names of tasks, layers and sets are shown as text, whatever is in them, and no path of this machine stands in it.

    Args:
        made: What the merged file says of itself.
        figures: Loader name, such as ``"id/svhn"`` or ``"ood/avg"``, to the figure that was measured on it.
        controls: What they are measured against: a row's name, such as those of `CONTROLS`, to its figures.
        metric: What the figures are, as the hub calls it.
        names: The merged tensors' names, by which layers are counted where the file does not say them.
        name: The card's title.
        loading: How the model is loaded; see `Loading`.
        base: What is known of the base besides its weights.
        merged_from: Further models of the hub that were merged, as ``owner/model``.

    Raises:
        CheckpointError: The file is no merged model.
        TypeError: A figure is no number.

    Example:
        >>> made = Provenance(kind="merged", tasks={"svhn": None}, recipe=MergeRecipe("ties").to_dict(), scale=1.0)
        >>> print(model_card(made, {"id/svhn": 0.75}).partition("## Figures")[2].partition("##")[0].strip())
        | model | id svhn |
        |---|---|
        | this model | 0.7500 |
        <BLANKLINE>
        Not measured beside it: the base; each fine-tuned model on its own set.
    """
    if made.kind not in ("merged", "adapter") or made.recipe is None:
        raise CheckpointError(f"a model card is of a merged model, not of {made.kind or 'a file of another origin'}.")
    base = BaseCard() if base is None else base
    loading = Loading() if loading is None else loading
    rows = _rows(figures, controls)
    sections = [
        _opening(made, base),
        _section("What it was made of", _origins(made, base)),
        _section("Recipe", _recipe(made)),
        _section("Layers pruned", _pruned(made, names)),
        _section("Figures", _figures(made, rows)),
        _section("Load it", loading.markdown),
        _section("Make it again", _again(made)),
        _section("Licence", _licence(base)),
        _section("Versions", ", ".join(literal(f"{library} {of}") for library, of in made.versions.items())),
    ]
    relation = "adapter" if made.kind == "adapter" else "merge"
    metadata = card_metadata(name, loading.library, relation, base, merged_from, rows.get(THIS, {}), metric)
    body = "\n\n".join([f"# {literal(printable_name(name))}", *filter(None, sections)])
    return encodable(f"---\n{metadata}\n---\n\n{body}\n")


def card_of(path: str | Path, figures: Mapping[str, float] | None = None, **options: Any) -> str:
    """Return the `model_card` of a merged model that is there already.

    Args:
        path: Its file, the index of its shards, or their folder.
        figures: As for `model_card`.
        options: Its others.

    Raises:
        CheckpointError: It cannot be read, or is no merged model.
        FileNotFoundError: There is no such file.
    """
    stored = open_checkpoint(path, prefix="")
    names = [name for name, header in stored.headers.items() if header.dtype.is_floating_point]
    given = {"names": names, "loading": Loading.of(path), **options}
    return model_card(Provenance.of(stored), figures, **given)


def card_beside(
    output: Output, checkpoints: Sequence[Checkpoint], figures: Mapping[str, float] | None = None, **options: Any
) -> Beside:
    """Return what writes the card of a merged model into its folder.

    Args:
        output: Where the model is written.
        checkpoints: The base and the tasks' models, beside which their own cards may stand.
        figures: As for `model_card`.
        options: Its others.
    """
    base, *tasks = checkpoints
    given = {
        "names": [name for name, header in output.headers.items() if header.dtype.is_floating_point],
        "name": output.path.absolute().name,
        "base": BaseCard.beside(base.folder),
        "merged_from": [name for each in tasks if each.folder and (name := hub_name(each.folder)) is not None],
        **options,
    }

    def write(folder: Path, made: Provenance) -> None:
        text = model_card(made, figures, loading=Loading.of(folder), **given)
        (folder / CARD).write_text(text, encoding="utf-8")

    return write


def _opening(made: Provenance, base: BaseCard) -> str:
    recipe = dict(made.recipe or {})
    try:
        described = MergeRecipe.from_dict(recipe).describe()
    except (TypeError, ValueError):  # of a rule that is not registered here
        rule = recipe.get("rule")
        described = str(rule.get("name") if isinstance(rule, Mapping) else rule)
    of = "its base" if base.name is None else f"[{literal(base.name)}](https://huggingface.co/{base.name})"
    number = len(made.tasks)
    models = f"{number} fine-tuned model{'' if number == 1 else 's'} and {of} in one"
    if made.kind == "adapter":
        models = f"What {number} fine-tuned model{'' if number == 1 else 's'} changed of {of}, as a LoRA adapter for it"
    text = (
        f"{models}, merged by {literal(described)} without any training, "
        "with lwptv-lightning: layer-wise pruning of task vectors ([LwPTV](https://arxiv.org/abs/2506.09093))."
    )
    if made.changed:
        text += (
            f"\n\nAfter the merge, {len(made.changed)} of its tensors were changed, such as statistics measured anew."
        )
    if made.left_out:
        text += f"\n\nIt is without {len(made.left_out)} tensors of the base, its classifier: the tasks have their own."
    for note in made.notes:
        text += f"\n\n{literal(note)}"
    if made.evaluated_in:
        text += f"\n\nIt was held in {literal(', '.join(made.evaluated_in))} when it was written."
    return text


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _origins(made: Provenance, base: BaseCard) -> str:
    of_base = "base" if base.name is None else f"base, {base.name}"
    rows = [[of_base, made.base or ""], *([f"task {task}", known or ""] for task, known in made.tasks.items())]
    return markdown_table(["model", "fingerprint"], ([literal(printable_name(each)) for each in row] for row in rows))


def _recipe(made: Provenance) -> str:
    """Return the recipe as what `lwptv merge --recipe` reads."""
    text = _fenced(json.dumps(dict(made.recipe or {}), indent=2), "json")
    return text if made.scale is None else f"{text}\n\nThe coefficient in force is {made.scale:g}."


def _pruned(made: Provenance, names: Iterable[str]) -> str:
    if made.mask is None:
        return "None: every layer of every task vector was merged."
    layers = _layers(made, names)
    rows, lines = [], []
    for task, kept in made.mask.items():
        pruned = [layer for layer in layers if layer not in set(kept)]
        whole = len(kept) + len(pruned)
        rows.append(
            [literal(printable_name(f"task {task}")), *(map(str, (len(pruned), whole)) if layers else ("", ""))]
        )
        more = f", and {len(pruned) - _MOST_LAYERS} more" if len(pruned) > _MOST_LAYERS else ""
        listed = ", ".join(literal(printable_name(layer)) for layer in pruned[:_MOST_LAYERS])
        lines.append(f"- {literal(printable_name(f'task {task}'))}: {listed or 'none'}{more}")
    table = markdown_table(["model", "pruned", "of"], rows)
    if not layers:
        return table
    # In the summary, which is HTML, a name would not be text.
    return "\n".join([table, "", "<details><summary>Their names</summary>", "", *lines, "", "</details>"])


def _layers(made: Provenance, names: Iterable[str]) -> list[str]:
    """Return the names of the merged layers in order, as far as the file or the tensors' names tell them."""
    kept = [layer for names_ in (made.mask or {}).values() for layer in names_]
    tied = (made.roles or {}).get("tied", {})
    apart = {*tied, *(each for role in ("averaged", "copied") for each in (made.roles or {}).get(role, ()))}
    is_excluded = matcher(made.excluded)

    def is_merged(tensor: str) -> bool:
        return tensor not in apart and not is_excluded(tensor)

    if made.layers is not None:
        return [layer for layer, tensors in made.layers.items() if layer in kept or any(map(is_merged, tensors))]
    granularity = (made.recipe or {}).get("granularity", "module")
    found = natural_order([name for name in dict.fromkeys(names) if is_merged(name)])
    layers = layers_from_names(found, granularity).names if granularity in GRANULARITIES else ()
    return list(layers) if set(kept) <= set(layers) else []


def _rows(
    figures: Mapping[str, float] | None, controls: Mapping[str, Mapping[str, float]] | None
) -> dict[str, dict[str, float]]:
    """Return the figures of this model and of what it is measured against, checked."""
    require_kind("figures", figures, Mapping | None, "a mapping of loader names to numbers")
    require_kind("controls", controls, Mapping | None, "a mapping of names to figures")
    found = {}
    for row, given in {THIS: figures or {}, **(controls or {})}.items():
        require_kind(f"the figures of {row!r}", given, Mapping, "a mapping of loader names to numbers")
        for loader, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"figure {loader!r} of {row!r} must be a number, not {shown(value)}.")
        if given:
            found[row] = {str(loader): float(value) for loader, value in given.items()}
    return found


def _figures(made: Provenance, rows: Mapping[str, Mapping[str, float]]) -> str:
    if not rows:
        return "None: no evaluation was at hand when this card was made. Measure it before you rely on it."
    columns = sorted(
        dict.fromkeys(loader for row in rows.values() for loader in row),
        key=lambda loader: LoaderName.of_figure(loader).is_average,
    )
    table = markdown_table(
        ["model", *(literal(heading(loader)) for loader in columns)],
        (
            [literal(printable_name(row)), *(_figure(given, loader) for loader in columns)]
            for row, given in rows.items()
        ),
    )
    wanted = [
        name for name in CONTROLS if name in ("base", "experts") or (name == "unpruned" and made.mask is not None)
    ]
    absent = [CONTROLS[name] for name in wanted if name not in rows]
    return f"{table}\n\nNot measured beside it: {'; '.join(absent)}." if absent else table


def _figure(figures: Mapping[str, float], loader: str) -> str:
    return f"{figures[loader]:.4f}" if loader in figures else ""


def _again(made: Provenance) -> str:
    """Return the commands, for a shell, with names in place of paths."""
    words = ["BASE", *(f"{task}=CHECKPOINT" for task in made.tasks)]
    options = ["--recipe", "recipe.json", *(word for glob in made.excluded for word in ("--exclude", glob))]
    if made.data is not None:
        options += ["--data-statistics", "FILE"]
    if made.kind == "adapter":
        options += ["--as-lora", "RANK"]
    inputs = " ".join(shlex.quote(printable(word)) for word in words)
    asked = " ".join(shlex.quote(printable(word)) for word in options)
    merge, check = f"lwptv merge {inputs} {asked} --out OUT", f"lwptv verify OUT {inputs}"
    text = "With the recipe above in `recipe.json`:\n\n"
    if made.kind == "adapter":
        return text + _fenced(merge, "bash")
    both = _fenced("\n".join([merge, check]), "bash")
    return (
        f"{text}{both}\n\n"
        "The second command, given this model in place of `OUT`, compares it bit for bit with what is made anew from "
        "what its metadata say. Give `--model`, `--prefix` and `--ema` where the merge was given them."
    )


def _licence(base: BaseCard) -> str:
    if base.license is None:
        return (
            "None is claimed: no card beside the base says one. Those of the base and of the fine-tuned models apply."
        )
    named = base.license if base.license_name is None else f"{base.license}, {base.license_name}"
    link = "" if base.license_link is None else f" (<{base.license_link}>)"
    return f"The card of the base says: {literal(named)}{link}. The fine-tuned models may have licences of their own."


def _fenced(text: str, language: str) -> str:
    """Return text as a block of code, fenced by more backticks than are in it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    lines = "\n".join(map(printable, text.split("\n")))
    return f"{fence}{language}\n{lines}\n{fence}"
