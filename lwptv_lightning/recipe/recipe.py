"""`MergeRecipe`: everything that decides what a merged model is, besides the checkpoints; plain JSON.

Rules and saliency are imported where they are used: the command line's help lists the fields, without a wait for torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwptv_lightning.files import InputFile
from lwptv_lightning.recipe.coefficients import read_coefficients
from lwptv_lightning.recipe.converters import (
    DTYPES,
    elements_ratio,
    read_calibrate,
    read_dtype,
    read_elements,
    read_reweight,
    read_rule,
    read_score,
    read_subspace,
    read_task,
)
from lwptv_lightning.recipe.scaling import LiNeS, read_layer_scaling
from lwptv_lightning.registry import (
    COUNTS,
    GRANULARITIES,
    RANKINGS,
    Converted,
    check_parameters,
    choice,
    declared,
    documented,
    fraction,
    from_values,
    number,
    parse_json,
    patterns,
    printable,
    shown,
    whole,
)

if TYPE_CHECKING:
    import torch

    from lwptv_lightning.modifiers import Calibration, Reweighting, Subspace
    from lwptv_lightning.rules import MergeRule
    from lwptv_lightning.saliency import ElementPruning


MODIFIERS = ("reweight", "subspace", "calibrate")
"""Fields for what stands beside a rule, with hyper-parameters of its own."""


@documented
@dataclass(frozen=True)
class MergeRecipe:
    """How to prune task vectors and which rule merges what is left.

    Layers are scored, and chosen, on the plain task vectors. Then ``reweight`` acts on each of these, the mask or
    ``elements`` on what that left, and the rule merges, in the ``subspace`` if there is one. Its result is multiplied
    with the scale, treated by ``calibrate``, multiplied with ``layer_scaling``, and added to the base. With
    ``prune_on="parts"`` reweighting, rule and calibration make the parts, and mask and coefficients act on those.

    Raises:
        UnknownNameError: No such rule, score, granularity, ranking, count or dtype.
        ValueError: A number is out of its range, ``elements`` stands beside a layer ratio, or the rule does not do
            what ``prune_on``, ``task``, ``subspace`` or ``calibrate`` asks for.
        TypeError: A value is of the wrong kind.

    Example:
        >>> recipe = MergeRecipe(rule="ties", ratio=0.5)
        >>> recipe.rule.density, recipe.effective_scale, MergeRecipe.from_json(recipe.to_json()) == recipe
        (0.2, 1.0, True)
    """

    rule: Converted[MergeRule | str | Mapping[str, Any], MergeRule] = declared(
        "task_arithmetic",
        "what `lwptv rules` lists",
        read_rule,
        "the merging rule, by name or as a mapping with its name and hyper-parameters or as a MergeRule",
        str,
    )
    scale: float | None = number(
        None, "(-inf, inf)", "the coefficient of the merged task vector, by default the rule's published one"
    )
    score: str = declared(
        "mean_abs",
        "what `lwptv scores` lists",
        read_score,
        "the saliency score that ranks layers; '-' before the name reverses it, as in `--score=-l2`",
        str,
    )
    ratio: float = fraction(0.0, "the fraction of layers to prune of each task vector")
    granularity: str = choice("module", GRANULARITIES, "what a layer is")
    ranking: str = choice("task", RANKINGS, "whether layers are ranked for each task or over all tasks")
    count: str = choice("layers", COUNTS, "what the ratio counts")
    keep: Converted[Sequence[str], tuple[str, ...]] = patterns((), "layers that are never pruned")
    prune: Converted[Sequence[str], tuple[str, ...]] = patterns((), "layers that are always pruned")
    seed: int = whole(0, None, "seeds the score 'random'")
    elements: Converted[ElementPruning | Mapping[str, float] | None, ElementPruning | None] = declared(
        None,
        "[0, 1]",
        read_elements,
        "the fraction of elements, the smallest, to prune inside each layer instead of whole layers (ElementPruning)",
        elements_ratio,
    )
    prune_on: str = choice(
        "task_vectors",
        ("task_vectors", "parts"),
        "what the mask acts on, a task vector before the rule or what a rule that is a sum made of it",
    )
    layer_scaling: Converted[LiNeS | Mapping[str, Any] | None, LiNeS | dict[str, float] | None] = declared(
        None, "LiNeS, or layer to number", read_layer_scaling, "coefficients by layer, on top of the scale"
    )
    coefficients: Converted[Mapping[str, Mapping[str, float]] | None, dict[str, dict[str, float]] | None] = declared(
        None,
        "task to globs of layers to numbers of at least 0",
        read_coefficients,
        'coefficients of what the rule made of each task, by task and layer, with `prune_on="parts"`; the first glob '
        "that matches counts, and zeros are pruned",
    )
    dtype: Converted[str | torch.dtype, str] = declared(
        "float32", ", ".join(DTYPES), read_dtype, "what to compute in", str
    )
    task: str | None = declared(
        None, "a task's name", read_task, "the task whose own model is wanted, of a rule that makes one for each", str
    )
    reweight: Converted[Reweighting | str | Mapping[str, Any] | None, Reweighting | None] = declared(
        None,
        "what `lwptv rules` lists",
        read_reweight,
        "what acts on each task vector before the rule (MonoSoup), as the rule is given",
        str,
    )
    calibrate: Converted[Calibration | str | Mapping[str, Any] | None, Calibration | None] = declared(
        None,
        "what `lwptv rules` lists",
        read_calibrate,
        "what acts on the scaled result of the rule (SVC, SubspaceBoosting), given as the rule is",
        str,
    )
    subspace: Converted[Subspace | str | Mapping[str, Any] | None, Subspace | None] = declared(
        None,
        "what `lwptv rules` lists",
        read_subspace,
        "the space of each matrix in which the rule works on elements (KnOTS), given as the rule is",
        str,
    )

    def __post_init__(self) -> None:
        check_parameters(self)
        if self.elements is not None and (self.ratio or self.keep or self.prune):
            raise ValueError("elements prunes inside layers; it takes the place of ratio, keep and prune.")
        if self.prune_on == "parts" and not self.rule.is_sum:
            why = f": {self.rule.no_parts}" if self.rule.no_parts else ""
            none = f"{self.rule.name!r} is none{why}"
            raise ValueError(f"prune_on='parts' needs a rule that is a sum over tasks; {none}.")
        if self.prune_on == "parts" and self.elements is not None:
            raise ValueError("prune_on='parts' prunes whole layers; elements cannot stand beside it.")
        if self.subspace is not None and (why := self.rule.why_no_subspace()):
            raise ValueError(f"subspace={shown(self.subspace.name)} is of no use to rule {self.rule.name!r}: {why}.")
        if self.coefficients is not None and self.prune_on != "parts":
            raise ValueError("coefficients act on what a rule makes of each task; give prune_on='parts' with them.")
        if self.task is not None and not self.rule.per_task:
            asked = f"task={shown(self.task)}"
            raise ValueError(f"rule {self.rule.name!r} merges all tasks into one model, so {asked} has no meaning.")
        if self.calibrate is not None:
            self._check_calibrated(self.calibrate)

    def _check_calibrated(self, calibration: Calibration) -> None:
        if self.task is not None:
            one = f"so task={shown(self.task)}, whose own model is none of all tasks, cannot stand beside it"
            raise ValueError(f"calibrate={calibration.name!r} acts on the model of all tasks, {one}.")
        if calibration.tells_directions_apart and self.rule.is_isotropic:
            told = "makes all singular values of a matrix equal, so that its singular vectors are rounding noise"
            instead = "Calibrate another rule, such as 'tsv_m' or 'task_arithmetic', or leave calibrate out"
            raise ValueError(
                f"calibrate={calibration.name!r} cannot stand beside rule {self.rule.name!r}, which {told}. {instead}."
            )

    @property
    def effective_scale(self) -> float:
        """The scaling coefficient in force: ``scale``, or else the rule's own."""
        return self.rule.default_scale if self.scale is None else self.scale

    @property
    def modifiers(self) -> dict[str, Any]:
        """What acts before, around or after the rule, by field, in that order; without those that are not given."""
        given = {name: getattr(self, name) for name in MODIFIERS}
        return {name: made for name, made in given.items() if made is not None}

    @property
    def prunes_layers(self) -> bool:
        """Whether whole layers may be pruned."""
        return self.ratio > 0 or bool(self.prune)

    @property
    def needs_layers(self) -> bool:
        """Whether it matters which tensors form a layer, or in which order layers stand."""
        finds_blocks = self.layer_scaling is not None and getattr(self.layer_scaling, "blocks", None) is None
        acts_on_layers = self.prunes_layers or self.coefficients is not None
        return acts_on_layers or self.elements is not None or finds_blocks

    @property
    def torch_dtype(self) -> torch.dtype:
        """What to compute in, as torch has it."""
        import torch

        return {"float32": torch.float32, "float64": torch.float64}[self.dtype]

    def replace(self, **changes: Any) -> MergeRecipe:
        """Return a recipe that differs in the given fields."""
        return MergeRecipe.from_dict({field.name: getattr(self, field.name) for field in fields(self)} | changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, ready for JSON or YAML."""
        values = asdict(self) | {"rule": self.rule.to_dict()}
        for name in MODIFIERS:
            made = getattr(self, name)
            values[name] = made and made.to_dict()
        if isinstance(self.layer_scaling, LiNeS):
            values["layer_scaling"]["name"] = "lines"
        return dict(json.loads(json.dumps(values)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MergeRecipe:
        """Make a recipe from `to_dict`'s result, or some of its values.

        Raises:
            UnknownNameError: A field that recipes do not have.
            TypeError: It is no mapping, or a value is of the wrong kind.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"a recipe must be a mapping of its fields, not {shown(values)}.")
        return from_values(cls, "field of a recipe", values)

    def to_json(self) -> str:
        """Return the recipe as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str | Path) -> MergeRecipe:
        """Make a recipe from JSON text, or from the file at a `Path`.

        Raises:
            ValueError: It is no JSON; of a file, also what else is wrong with it, after the file's name.
            TypeError: ``text`` is neither.
        """
        if not isinstance(text, Path):
            if not isinstance(text, str):
                raise TypeError(f"a recipe is read from JSON text or the Path of its file, not from {shown(text)}.")
            return cls.from_dict(parse_json(text, "a recipe"))
        file = InputFile.at(text)
        try:
            return cls.from_json(file.text().decode("utf-8"))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{printable(text)}: {error}") from error

    def describe(self) -> str:
        """Return the recipe in a few words, for tables."""
        pruned = f", {self.score} {self.ratio:g}" if self.prunes_layers else ""
        inside = f", elements {self.elements.ratio:g}" if self.elements else ""
        scaled = ", LiNeS" if isinstance(self.layer_scaling, LiNeS) else ""
        learnt = ", coefficients" if self.coefficients is not None else ""
        own = f" for {self.task}" if self.task is not None else ""
        beside = "".join(f", {each.name}" for each in self.modifiers.values())
        return f"{self.rule.name}{own} x {self.effective_scale:g}{beside}{learnt}{scaled}{pruned}{inside}"


def make_recipe(
    description: MergeRecipe | str | Mapping[str, Any], options: Mapping[str, Any] | None = None
) -> MergeRecipe:
    """Return a recipe from a rule's name, a mapping of a recipe's fields, the name of its ``.json`` file, or as it is.

    A ``dtype`` and a ``task`` among options of merging go before the recipe's own.

    Raises:
        UnknownNameError: No such rule or field.
        TypeError: ``description`` is none of these, or a value is of the wrong kind.

    Example:
        >>> make_recipe("ties") == make_recipe({"rule": "ties"}) == MergeRecipe("ties")
        True
    """
    if not isinstance(options, Mapping | None):
        raise TypeError(f"options of merging must be a mapping, not {shown(options)}.")
    if isinstance(description, str) and description.endswith(".json"):
        description = MergeRecipe.from_json(Path(description))
    if not isinstance(description, MergeRecipe):
        description = MergeRecipe.from_dict({"rule": description} if isinstance(description, str) else description)
    changes = {name: value for name in ("dtype", "task") if (value := (options or {}).get(name)) is not None}
    return description.replace(**changes) if changes else description
