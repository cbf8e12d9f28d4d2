"""`MergeRecipe`: everything that decides what a merged model is, besides the checkpoints; plain JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwptv_lightning.recipe.scaling import LiNeS, read_layer_scaling, write_layer_scaling
from lwptv_lightning.registry import COUNTS, GRANULARITIES, RANKINGS, require_known
from lwptv_lightning.rules import MergeRule, make_rule
from lwptv_lightning.saliency import ElementPruning, require_ratio, require_score

PRUNE_ON = ("task_vectors", "parts")


@dataclass(frozen=True, init=False)
class MergeRecipe:
    """How to prune task vectors and which rule merges what is left.

    Args:
        rule: A registered name, a mapping with ``name`` and hyper-parameters, or a `MergeRule`.
        scale: The scaling coefficient of the merged task vector; by default the rule's published one.
        score: The saliency score that ranks layers; ``"-"`` before the name reverses it.
        ratio: The fraction of layers to prune of each task vector, in [0, 1].
        granularity: What a layer is: ``"block"``, ``"module"`` or ``"tensor"``.
        ranking: ``"task"``: layers are ranked for each task; ``"all"``: over all tasks.
        count: Whether ``ratio`` counts ``"layers"`` or ``"parameters"``.
        keep: Globs of layers that are never pruned.
        prune: Globs of layers that are always pruned.
        seed: For the score ``"random"``.
        elements: Prune the smallest elements inside each layer instead of whole layers.
        prune_on: ``"task_vectors"``: the mask acts before the rule. ``"parts"``: it acts on what the rule made of
            each task, for rules that are sums over tasks.
        layer_scaling: `LiNeS`, or a coefficient for each layer, on top of ``scale``.

    Raises:
        UnknownNameError: No such rule, score, granularity, ranking or count.
        ValueError: A number is out of its range, or ``elements`` stands beside a layer ratio.

    Example:
        >>> recipe = MergeRecipe(rule="ties", ratio=0.5)
        >>> recipe.rule.density, recipe.effective_scale, MergeRecipe.from_json(recipe.to_json()) == recipe
        (0.2, 1.0, True)
    """

    rule: MergeRule
    scale: float | None
    score: str
    ratio: float
    granularity: str
    ranking: str
    count: str
    keep: tuple[str, ...]
    prune: tuple[str, ...]
    seed: int
    elements: ElementPruning | None
    prune_on: str
    layer_scaling: LiNeS | dict[str, float] | None

    def __init__(
        self,
        rule: str | Mapping[str, Any] | MergeRule = "task_arithmetic",
        scale: float | None = None,
        score: str = "mean_abs",
        ratio: float = 0.0,
        granularity: str = "module",
        ranking: str = "task",
        count: str = "layers",
        keep: tuple[str, ...] | list[str] = (),
        prune: tuple[str, ...] | list[str] = (),
        seed: int = 0,
        elements: ElementPruning | Mapping[str, float] | None = None,
        prune_on: str = "task_vectors",
        layer_scaling: LiNeS | Mapping[str, Any] | None = None,
    ) -> None:
        # Written out, because the constructor takes names and lists where the attributes are objects and tuples.
        values = {
            "rule": make_rule(rule),
            "scale": None if scale is None else _finite("scale", scale),
            "score": score,
            "ratio": ratio,
            "granularity": granularity,
            "ranking": ranking,
            "count": count,
            "keep": _patterns("keep", keep),
            "prune": _patterns("prune", prune),
            "seed": seed,
            "elements": ElementPruning(**elements) if isinstance(elements, Mapping) else elements,
            "prune_on": prune_on,
            "layer_scaling": read_layer_scaling(layer_scaling),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        require_score(self.score)
        require_ratio(self.ratio)
        require_known("granularity", self.granularity, GRANULARITIES)
        require_known("ranking", self.ranking, RANKINGS)
        require_known("count", self.count, COUNTS)
        require_known("prune_on", self.prune_on, PRUNE_ON)
        if not isinstance(self.elements, ElementPruning | None):
            raise TypeError(f"elements must be an ElementPruning or a mapping with its ratio, not {self.elements!r}.")
        if self.elements is not None and (self.ratio or self.keep or self.prune):
            raise ValueError("elements prunes inside layers; it takes the place of ratio, keep and prune.")
        if self.prune_on == "parts" and not self.rule.has_parts():
            raise ValueError(f"prune_on='parts' needs a rule that is a sum over tasks; {self.rule.name!r} is none.")
        if self.prune_on == "parts" and self.elements is not None:
            raise ValueError("prune_on='parts' prunes whole layers; elements cannot stand beside it.")

    @property
    def effective_scale(self) -> float:
        """The scaling coefficient in force: ``scale``, or else the rule's own."""
        return self.rule.default_scale if self.scale is None else self.scale

    @property
    def prunes_layers(self) -> bool:
        """Whether whole layers may be pruned."""
        return self.ratio > 0 or bool(self.prune)

    @property
    def needs_layers(self) -> bool:
        """Whether it matters which tensors form a layer."""
        return self.prunes_layers or self.elements is not None or isinstance(self.layer_scaling, dict)

    def replace(self, **changes: Any) -> MergeRecipe:
        """Return a recipe that differs in the given fields."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return MergeRecipe(**(fields | changes))

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, ready for JSON or YAML."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["rule"] = self.rule.to_dict()
        values["elements"] = None if self.elements is None else dataclasses.asdict(self.elements)
        values["layer_scaling"] = write_layer_scaling(self.layer_scaling)
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MergeRecipe:
        """Make a recipe from `to_dict`'s result.

        Raises:
            UnknownNameError: A field that recipes do not have.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            require_known("field of a recipe", name, known)
        return cls(**values)

    def to_json(self) -> str:
        """Return the recipe as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str | Path) -> MergeRecipe:
        """Make a recipe from JSON text, or from the file at a `Path`."""
        values = json.loads(text.read_text() if isinstance(text, Path) else text)
        return cls.from_dict(values)

    def describe(self) -> str:
        """Return the recipe in a few words, for tables."""
        pruned = f", {self.score} {self.ratio:g}" if self.prunes_layers else ""
        inside = f", elements {self.elements.ratio:g}" if self.elements else ""
        scaled = f", {type(self.layer_scaling).__name__}" if isinstance(self.layer_scaling, LiNeS) else ""
        return f"{self.rule.name} x {self.effective_scale:g}{scaled}{pruned}{inside}"


def _finite(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r}.")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value}.")
    return float(value)


def _patterns(name: str, value: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(pattern, str) for pattern in value):
        raise TypeError(f"{name} must be a sequence of glob patterns, not {value!r}.")
    return tuple(value)
