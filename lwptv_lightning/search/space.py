"""What a search tries: rules, modifiers, scores, ratios and coefficients, as recipes in the order of their worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

from lwptv_lightning.recipe import MODIFIERS, MergeRecipe
from lwptv_lightning.registry import (
    UnknownNameError,
    require_finite,
    require_kind,
    require_known,
    require_ratio,
    shown,
    unusual,
)
from lwptv_lightning.rules import RULES, MergeRule, make_rule
from lwptv_lightning.saliency import require_score

RULES_TRIED = ("task_arithmetic", "ties", "tsv_m", "iso_c")
SCORES_TRIED = ("mean_abs", "relative_l2")
RATIOS_TRIED = (0.0, 0.3, 0.5, 0.7)
FACTORS = (0.25, 0.5, 0.7, 0.85, 1.0, 1.4)
"""Scales that are tried, as parts of the rule's published one: smaller ones often do better on other domains."""
GATES_TRIED = ("tsv_m",)
GATES_FACTORS = (0.5, 0.7, 0.85, 1.0, 1.2)
"""Scales of learnt coefficients, as parts of what was learnt."""
REFERENCE = "task_arithmetic x 0.3"
_PUBLISHED = 0.3
_COMMON = ("granularity", "ranking", "count", "keep", "prune_on", "layer_scaling", "dtype", *MODIFIERS)


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Recipes to try: each rule without pruning, and with each score and ratio, at each scale.

    Args:
        rules: Names; or mappings with a name and hyper-parameters, of which a list stands for each of its values:
            ``{"name": "ties", "density": [0.1, 0.2]}``. Rules that need data, such as ``"regmean"``, count only here.
        scores: Saliency scores.
        ratios: Fractions of layers to prune, in [0, 1); 0 is always tried, as what pruning is compared with.
        scales: Coefficients, the same for all rules; or rule name to coefficients, others having their own ones. By
            default 0.25 to 1.4 of the rule's published scale.
        gates: Rules on whose parts `LayerGates` learns coefficients, or one of them, ``True`` for ``"tsv_m"`` and
            ``False`` for none; by default ``"tsv_m"``, where that is tried and there are samples to learn on.
        common: Further fields of all recipes, such as ``{"granularity": "block"}``.
        modifiers: What stands beside each rule, after it was tried without: mappings such as ``{"calibrate": "svc"}``
            or ``{"reweight": "monosoup", "calibrate": {"name": "svc", "alpha": [0.1, 1]}}``, where a list stands for
            each of its values. What a rule refuses is left out of it, as `left_out` says.

    Raises:
        UnknownNameError: No such rule, hyper-parameter, score or field.
        ValueError: A number is out of its range, there is nothing to try, or no rule takes a modifier.
        TypeError: A value is of the wrong kind.

    Example:
        >>> space = SearchSpace(rules=["ties"], scores=["mean_abs"], ratios=[0.5], scales=[0.5, 1])
        >>> list(space.recipes())[1:]
        ['ties x 0.5', 'ties x 1', 'ties x 0.5, mean_abs 0.5', 'ties x 1, mean_abs 0.5']
    """

    rules: Sequence[str | Mapping[str, Any] | MergeRule[Any]] = RULES_TRIED
    scores: Sequence[str] = SCORES_TRIED
    ratios: Sequence[float] = RATIOS_TRIED
    scales: Sequence[float] | Mapping[str, Sequence[float]] | None = None
    gates: Sequence[str] | str | bool | None = None
    common: Mapping[str, Any] = field(default_factory=dict)
    modifiers: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        rules = tuple(dict.fromkeys(rule for given in _listed("rules", self.rules) for rule in _variants(given)))
        scores = tuple(dict.fromkeys(_listed("scores", self.scores)))
        for score in scores:
            require_score(score)
        ratios = tuple(dict.fromkeys(require_ratio(ratio, "ratios") for ratio in _listed("ratios", self.ratios)))
        if 1.0 in ratios:
            raise ValueError("ratios: 1 prunes every layer, which leaves the base; give fractions in [0, 1).")
        names = {rule.name for rule in rules}
        hold: dict[str, Any] = {
            "rules": rules,
            "scores": scores,
            "ratios": (0.0, *(ratio for ratio in ratios if ratio)),
        }
        hold |= {"scales": _scales(self.scales, names), "gates": _gates(self.gates), "common": _common(self.common)}
        hold["modifiers"] = tuple(_modifiers(self.modifiers))
        for name, value in hold.items():
            object.__setattr__(self, name, value)
        self.recipes()  # what does not fit together says so now
        for beside in self.modifiers:
            refused = [why for rule in self.rules if (why := self._refusal(rule, beside))]
            if len(refused) == len(self.rules):
                raise ValueError(f"modifiers: no rule of the search takes {_told(beside)}. {refused[0]}")

    def scales_of(self, rule: MergeRule[Any]) -> tuple[float, ...]:
        """Return the coefficients that are tried with a rule."""
        given: Any = self.scales
        if isinstance(given, Mapping):
            given = given.get(rule.name)
        return given or tuple(float(f"{rule.default_scale * factor:.4g}") for factor in FACTORS)

    def recipes(self) -> dict[str, MergeRecipe]:
        """Return the recipes by name: task arithmetic at 0.3, what prunes nothing, then what prunes."""
        found = {REFERENCE: reference()}
        pruned = [(score, ratio) for ratio in self.ratios if ratio for score in self.scores]
        tried = [
            (rule, beside) for beside in ({}, *self.modifiers) for rule in self.rules if not self._refusal(rule, beside)
        ]
        for score, ratio in [("", 0.0), *pruned]:
            for rule, beside in tried:
                fields = {**self.common, **beside, "rule": rule} | ({"score": score, "ratio": ratio} if ratio else {})
                for scale in self.scales_of(rule):  # type: ignore[arg-type]
                    recipe = MergeRecipe.from_dict({**fields, "scale": scale})
                    found.setdefault(name_of(recipe), recipe)
        return found

    def left_out(self) -> tuple[str, ...]:
        """Return which rules do not take which modifiers, and why, in sentences, each once."""
        told = (
            f"Not tried: {rule.name} with {_told(beside)}. {why}"  # type: ignore[union-attr]
            for beside in self.modifiers
            for rule in self.rules
            if (why := self._refusal(rule, beside))
        )
        return tuple(dict.fromkeys(told))

    def _refusal(self, rule: Any, beside: Mapping[str, Any]) -> str:
        """Return why a rule does not take modifiers that it is tried with; empty where it does, or has none."""
        try:
            MergeRecipe.from_dict({**self.common, **beside, "rule": rule})
        except ValueError as error:
            return str(error) if beside else ""
        return ""

    def gates_rules(self) -> tuple[str, ...]:
        """Return the rules on whose parts coefficients are learnt, whether they were asked for or not."""
        if self.gates is None:
            return tuple(rule for rule in GATES_TRIED if rule in {each.name for each in self.rules})  # type: ignore[union-attr]
        return tuple(self.gates)  # type: ignore[arg-type]


def reference() -> MergeRecipe:
    """Return what every search tries: task arithmetic at 0.3, its authors' choice."""
    return MergeRecipe("task_arithmetic", _PUBLISHED)


def unpruned(recipe: MergeRecipe) -> MergeRecipe:
    """Return a recipe that prunes nothing and is the same besides."""
    usual = MergeRecipe()
    kept = {} if recipe.coefficients is None else {"coefficients": None, "prune_on": usual.prune_on}
    return recipe.replace(score=usual.score, ratio=0.0, prune=(), elements=None, **kept)


def name_of(recipe: MergeRecipe) -> str:
    """Return a recipe in a few words, with the hyper-parameters of rule and modifiers that are not as usual.

    Example:
        >>> name_of(MergeRecipe({"name": "ties", "density": 0.1}, ratio=0.5))
        'ties x 1, mean_abs 0.5, density 0.1'
    """
    told = [f"{name} {_word(value)}" for name, value in unusual(recipe.rule).items()]
    for each in recipe.modifiers.values():
        told += [f"{each.name}.{name} {_word(value)}" for name, value in unusual(each).items()]
    return ", ".join([recipe.describe(), *told])


def rule_in_words(recipe: MergeRecipe) -> str:
    """Return a recipe's rule and what stands beside it, with all hyper-parameters, as a text."""
    return ", ".join(map(repr, (recipe.rule, *recipe.modifiers.values())))


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _listed(name: str, given: Any) -> list[Any]:
    """Return several values; one by itself is the only one."""
    if isinstance(given, str | int | float | Mapping | MergeRule):
        given = [given]
    require_kind(name, given, Sequence, "a list")
    if not given:
        raise ValueError(f"{name} is empty: expected at least one.")
    return list(given)


def _variants(given: Any) -> Iterator[MergeRule[Any]]:
    """Yield a rule with each of the hyper-parameters that are listed."""
    if not isinstance(given, Mapping):
        yield make_rule(given)
        return
    if "name" not in given:
        raise TypeError(f"a rule is given by its name, or as a mapping with a 'name', not as {shown(given)}.")
    require_known("merging rule", given["name"], RULES)
    yield from map(make_rule, _each_value(given, make_rule(given["name"])))


def _each_value(given: Mapping[str, Any], usual: Any) -> Iterator[dict[str, Any]]:
    """Yield hyper-parameters with each of the values that are listed; ``usual`` has the same ones."""
    checks = {each.name: each.metadata["check"] for each in dataclasses.fields(usual)}
    choices = {
        name: value if _is_choice(partial(checks[name], name), value) else [value]
        for name, value in given.items()
        if name in checks
    }
    rest = {name: value for name, value in given.items() if name not in checks}
    for values in product(*choices.values()):
        yield rest | dict(zip(choices, values, strict=True))


def _modifiers(given: Any) -> Iterator[dict[str, Any]]:
    """Yield what stands beside a rule, as a recipe's fields, with each of the values that are listed; not nothing."""
    for beside in _listed("modifiers", given) if given not in ((), []) else ():
        require_kind("modifiers", beside, Mapping, 'a list of mappings such as {"calibrate": "svc"}')
        for name in beside:
            require_known("field of a modifier", name, MODIFIERS)
        listed = {name: value if isinstance(value, list | tuple) else [value] for name, value in beside.items()}
        choices = {name: [made for each in values for made in _made(name, each)] for name, values in listed.items()}
        for values in product(*choices.values()):
            if any(value is not None for value in values):
                yield dict(zip(choices, values, strict=True))


def _made(field: str, given: Any) -> Iterator[Any]:
    """Yield a modifier with each of the hyper-parameters that are listed."""
    if not isinstance(given, Mapping) or "name" not in given:
        yield MergeRecipe.from_dict({field: given}).modifiers.get(field)
        return
    usual = MergeRecipe.from_dict({field: given["name"]}).modifiers[field]
    for values in _each_value(given, usual):
        yield MergeRecipe.from_dict({field: values}).modifiers[field]


def _told(beside: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={each.name}" for name, each in beside.items() if each is not None)


def _is_choice(check: Callable[[Any], Any], value: Any) -> bool:
    """Tell whether a list is of several values, and not a value itself, as of globs or of a number for each task."""

    def fits(each: Any) -> bool:
        try:
            check(each)
        except (TypeError, ValueError):
            return False
        return True

    return isinstance(value, list | tuple) and not fits(value) and any(map(fits, value))


def _scales(given: Any, rules: set[str]) -> Any:
    if given is None:
        return None
    if not isinstance(given, Mapping):
        return _numbers("scales", given)
    for name in given:
        require_known("merging rule", name, RULES)
        if name not in rules:
            raise UnknownNameError("rule of the search among scales", name, sorted(rules))
    return {name: _numbers(f"scales of {name}", values) for name, values in given.items()}


def _numbers(name: str, given: Any) -> tuple[float, ...]:
    return tuple(dict.fromkeys(require_finite(name, value) for value in _listed(name, given)))


def _gates(given: Any) -> tuple[str, ...] | None:
    if given is None:
        return None
    if isinstance(given, bool):
        return GATES_TRIED if given else ()
    names = _listed("gates", given) if given != [] and given != () else []
    for name in names:
        require_known("merging rule", name, RULES)
        MergeRecipe(name, prune_on="parts")  # refuses what is no sum over tasks
    return tuple(dict.fromkeys(names))


def _common(given: Any) -> dict[str, Any]:
    require_kind("common", given, Mapping, "a mapping of a recipe's fields")
    for name in given:
        require_known("field that recipes of a search have in common", name, _COMMON)
    return dict(given)
