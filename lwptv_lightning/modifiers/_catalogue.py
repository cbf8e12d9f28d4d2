"""What there is to choose from, read off the registries: for ``lwptv rules`` and ``docs/rules.md``."""

import dataclasses
import inspect
from dataclasses import dataclass

from lwptv_lightning.modifiers._base import CALIBRATIONS, REWEIGHTINGS, SUBSPACES, Modifier
from lwptv_lightning.registry import describe_field


@dataclass(frozen=True)
class ModifierEntry:
    """What to know of a modifier before using it.

    Attributes:
        field: The recipe's field that takes it.
        summary: The first line of its docstring.
        parameters: One text for each hyper-parameter: name, default and range.
    """

    name: str
    field: str
    summary: str
    paper: str
    parameters: tuple[str, ...]


def modifier_entries() -> list[ModifierEntry]:
    """Return an entry for each registered modifier, those that act first before the others, by name."""
    registered: list[tuple[str, str, type[Modifier]]] = [
        (field, name, cls)
        for field, registry in (("reweight", REWEIGHTINGS), ("subspace", SUBSPACES), ("calibrate", CALIBRATIONS))
        for name, cls in sorted(registry.items())
    ]
    return [
        ModifierEntry(
            name=name,
            field=field,
            summary=" ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split()),
            paper=cls.paper,
            parameters=tuple(map(describe_field, dataclasses.fields(cls))),  # type: ignore[arg-type]
        )
        for field, name, cls in registered
    ]


def modifiers_markdown() -> str:
    """Return what the page ``docs/rules.md`` says of what stands beside a rule."""
    lines = ["| field | modifier | what it does | hyper-parameters = default in range |", "|---|---|---|---|"]
    for entry in modifier_entries():
        parameters = "<br>".join(f"`{parameter}`" for parameter in entry.parameters) or "none"
        cells = (f"`{entry.field}`", f"[`{entry.name}`]({entry.paper})", entry.summary, parameters)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return _SECTION.format(table="\n".join(lines))


_SECTION = """## Modifiers of any rule

{table}

`lwptv merge --reweight NAME --subspace NAME --calibrate NAME --set calibrate.alpha=0.5` asks for them; in a
configuration they stand under `recipe:`, as a name or as a mapping with the name and hyper-parameters.

`MergeRecipe(layer_scaling=LiNeS(...))` scales the merged task vector by depth (arXiv 2410.17146);
`layer_scaling={{"blocks.0.attn.qkv": 0.5}}` sets coefficients layer by layer. `MergeRecipe(elements=ElementPruning(
ratio=...))` prunes the smallest elements inside each layer instead of whole layers. [All that a recipe
holds](recipe.md), with ranges and defaults, is listed apart.

### The order

1. Layers are scored, and chosen, on the plain task vectors.
2. `reweight` acts on each plain task vector.
3. The mask prunes layers of what that left; `elements` ranks and prunes elements of what that left.
4. The rule merges; with a `subspace`, what is left of all tasks is mapped into the space that it spans, where the rule
   surveys and merges, and the result, or each part, is mapped back. Matrices that are not in `include`, and all other
   tensors, stay the base's.
5. `scale` multiplies what the rule made.
6. `calibrate` acts on the product, and sees the task vectors as the rule did. So what it makes of a scale that comes
   before it is its own affair.
7. `layer_scaling` multiplies that. The published alpha of LiNeS is the quotient for what it multiplies: with a
   calibration, the calibrated task vector.
8. The base is added, once.

With `prune_on="parts"` the rule sees whole task vectors, reweighted ones where there is a `reweight`. The calibration
finds its directions and gains in the scaled sum of all parts, and applies them to each part. Mask and coefficients act
on what that makes.

Running statistics, which are averaged, and tensors that are copied are touched by none of this.
"""
