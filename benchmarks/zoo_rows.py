"""What the benchmark on the zoo measures: rules and modifiers, and the hyper-parameters that it chooses among."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from lwptv_lightning import MergeRecipe
from lwptv_lightning.modifiers import CALIBRATIONS, REWEIGHTINGS, SUBSPACES
from lwptv_lightning.rules import RULES

RATIO = 0.5
"""The share of layers that is pruned, where something is."""
TWO_TASKS = ("nuslerp",)
"""Rules that merge two tasks, and no more."""
REFERENCE = "task_arithmetic"

Settings = tuple[tuple[str, Any], ...]
"""Hyper-parameters by their place in a recipe, such as ``("rule.density", 0.2)``."""


@dataclass(frozen=True)
class Form:
    """A way to use a rule or a modifier, which is tuned by itself.

    Attributes:
        name: What tells it from the usual way; empty for that.
        fields: Of a recipe.
        grid: Place in a recipe to the values that are tried there.
        rules: The rules that a modifier is measured with.
        scale: The place of the coefficient that is tuned.
    """

    name: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    rules: tuple[str, ...] = ("task_arithmetic", "ties", "tsv_m")
    scale: str = "scale"


USUAL = (Form(),)
DENSITIES = {"rule.density": (0.2, 0.4, 0.8)}
CUTS = {"rule.rtol": (None, 1e-4, 1e-3, 1e-2)}
FORMS: dict[str, tuple[Form, ...]] = {
    "actmat": (Form(grid=CUTS), Form("TACT", {"rule": {"trim": 0.5}}, CUTS)),
    "breadcrumbs": (Form(grid={"rule.density": (0.4, 0.6, 0.85)}),),
    "breadcrumbs_ties": (Form(grid={"rule.density": (0.4, 0.6, 0.85)}),),
    "cart": (Form(grid={"rule.rank_ratio": (0.08, 0.16, 0.32), "rule.scale": (0.5, 1.0, 2.0)}),),
    "consensus_ta": (Form(grid={"rule.tall_lambda": (0.2, 0.4, 0.6)}),),
    "consensus_ties": (Form(grid={"rule.tall_lambda": (0.2, 0.4, 0.6)}),),
    "dare": (Form(grid={"rule.density": (0.3, 0.5, 0.8)}),),
    "dare_ties": (Form(grid={"rule.density": (0.5, 0.8), "rule.trim_density": (0.2, 0.5)}),),
    "dc_merge": (
        Form(grid={"rule.keep": (0.001, 0.01, 0.1, 1.0)}),
        Form("average", {"rule": {"smoothing": "average"}}, {"rule.keep": (0.001, 0.01, 0.1, 1.0)}),
    ),
    "della": (Form(grid={"rule.density": (0.3, 0.5, 0.8)}),),
    "iso_cts": (Form(grid={"rule.common_fraction": (0.5, 0.65, 0.8)}),),
    "knots_ties": (Form(grid=DENSITIES),),
    "magnitude": (Form(grid=DENSITIES),),
    "pcb": (Form(grid={"rule.density": (0.1, 0.2, 0.4)}),),
    "regmean": (Form(grid={"rule.off_diagonal": (0.6, 0.8, 0.9, 1.0)}),),
    "sce": (Form(grid={"rule.density": (0.25, 0.5, 1.0)}),),
    "score": (Form(), Form("diagonal", {"rule": {"off_diagonal": False}})),
    "tatr": (Form(grid={"rule.quantile": (0.95, 0.99)}),),
    "ties": (Form(grid={"rule.density": (0.1, 0.2, 0.4, 0.8)}),),
    "wudi": (Form(grid={"rule.lr": (1e-5, 3e-5)}), Form("closed form", {"rule": {"solver": "closed_form"}}, CUTS)),
}
"""Rules with hyper-parameters that matter, or that are used in several ways."""
MODIFIERS: dict[str, tuple[Form, ...]] = {
    "monosoup": (Form("MonoSoup"), Form("MonoSoup, variance", {"reweight": {"version": "variance"}})),
    "svc": (Form("SVC", grid={"calibrate.alpha": (0.05, 0.1, 0.2, 0.5, 1.0)}, scale="calibrate.scale"),),
    "subspace_boosting": (
        Form("SubspaceBoosting", grid={"calibrate.beta": (0.01, 0.1, 0.2, 0.4, 0.6)}, scale="calibrate.scale"),
    ),
    "knots": (Form("KnOTS", rules=("task_arithmetic", "ties", "magnitude")),),
}
"""Modifiers with hyper-parameters that matter, or that are used in several ways."""
PLACES = {"reweight": REWEIGHTINGS, "subspace": SUBSPACES, "calibrate": CALIBRATIONS}
"""The fields of a recipe that take modifiers."""


@dataclass(frozen=True)
class Row:
    """What is tuned by itself.

    Attributes:
        rule: What merges.
        form: The way of the rule.
        modifier: The way of a modifier; empty for none.
        ratio: The share of layers that is pruned.
        tasks: How many tasks are merged.
        fields: Of the recipe.
        grid: Place in a recipe to the values that are tried there.
        scale: The place of the coefficient that is tuned.
    """

    rule: str
    form: str = ""
    modifier: str = ""
    ratio: float = 0.0
    tasks: int = 5
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False)
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict, compare=False)
    scale: str = field(default="scale", compare=False)

    @property
    def plain(self) -> Row:
        """The same rule, unpruned and without a modifier; only what tells it from others."""
        return Row(self.rule, self.form, tasks=self.tasks)

    @property
    def alone(self) -> Row:
        """The same rule, pruned as this, without a modifier; only what tells it from others."""
        return replace(self.plain, ratio=self.ratio)

    @property
    def reference(self) -> Row:
        """What it is compared with; only what tells it from others."""
        return Row(REFERENCE, tasks=self.tasks)

    @property
    def settings(self) -> tuple[Settings, ...]:
        """The hyper-parameters that are tried."""
        return tuple(tuple(zip(self.grid, values, strict=True)) for values in product(*self.grid.values()))

    def recipe(self, settings: Settings = (), factor: float = 1.0) -> MergeRecipe:
        """Return a recipe with some hyper-parameters, and its coefficient so many times what it is by itself."""
        made = {"rule": {"name": self.rule}, "ratio": self.ratio} | dict(self.fields)
        for place, value in settings:
            made = _with(made, place, value)
        if factor == 1:
            return MergeRecipe.from_dict(made)
        own = MergeRecipe.from_dict(made)
        usual = own.effective_scale if self.scale == "scale" else own.calibrate.scale
        return MergeRecipe.from_dict(_with(made, self.scale, float(f"{usual * factor:.4g}")))

    def scale_of(self, recipe: MergeRecipe) -> float:
        """Return the coefficient that is tuned, as a recipe has it."""
        return recipe.effective_scale if self.scale == "scale" else recipe.calibrate.scale

    def beside(self, chosen: MergeRecipe, settings: Settings) -> Row:
        """Return the row with what was chosen for its rule alone: hyper-parameters, and the coefficient beside its own.

        A modifier that tries values at the same place goes before them.
        """
        fields = {"rule": {"name": self.rule}} | dict(self.fields)
        if self.scale != "scale":  # what a calibration leaves alone keeps it, too
            fields["scale"] = chosen.effective_scale
        for place, value in settings:
            if place not in self.grid:
                fields = _with(fields, place, value)
        return replace(self, fields=fields)

    @property
    def name(self) -> str:
        """A name that no other row has."""
        pruned = f"{self.ratio:.0%} pruned" if self.ratio else ""
        return ", ".join(filter(None, (self.rule, self.form, self.modifier, pruned, f"{self.tasks} tasks")))


def rows(rules: Iterable[str]) -> Iterator[Row]:
    """Yield the rows of some rules, those without a modifier first."""
    rules = list(rules)
    for rule in rules:
        yield from _of_rule(rule, 2 if rule in TWO_TASKS else 5)
    if any(rule in TWO_TASKS for rule in rules):
        yield Row(REFERENCE, tasks=2)
    for place, registry in PLACES.items():
        for name in sorted(registry):
            for form in MODIFIERS.get(name, (Form(name),)):
                yield from _modified([rule for rule in form.rules if rule in rules], place, name, form)


def _of_rule(rule: str, tasks: int) -> Iterator[Row]:
    for form in FORMS.get(rule, USUAL):
        fields = {"rule": {"name": rule} | form.fields.get("rule", {})}
        for ratio in (0.0, RATIO):
            yield Row(rule, form.name, ratio=ratio, tasks=tasks, fields=fields, grid=form.grid)


def _modified(rules: Iterable[str], place: str, name: str, form: Form) -> Iterator[Row]:
    value = {"name": name} | form.fields.get(place, {})
    for rule in rules:
        grid = dict(form.grid)
        if place == "subspace":  # how much to keep of a task vector depends on the axes
            grid |= FORMS.get(rule, USUAL)[0].grid
        for ratio in (0.0, RATIO):
            fields = {"rule": {"name": rule}, place: value}
            yield Row(rule, modifier=form.name, ratio=ratio, fields=fields, grid=grid, scale=form.scale)


def _with(fields: Mapping[str, Any], place: str, value: Any) -> dict[str, Any]:
    outer, _, inner = place.partition(".")
    if not inner:
        return {**fields, outer: value}
    return {**fields, outer: {**fields.get(outer, {}), inner: value}}


def words_of(settings: Settings) -> str:
    """Return hyper-parameters in a few words.

    Example:
        >>> words_of((("rule.density", 0.2), ("calibrate.alpha", None)))
        'density 0.2, alpha default'
    """
    told = ((place.rpartition(".")[2], "default" if value is None else value) for place, value in settings)
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in told)


def all_rules() -> list[str]:
    """Return the registered rules."""
    return sorted(RULES)
