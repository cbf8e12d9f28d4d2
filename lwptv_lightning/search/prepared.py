"""What a search needs, checked before anything runs: candidates, and samples to choose, to learn and to report on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from lwptv_lightning.evaluation import MergeModule
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import own_tasks, require_groups_apart, require_kind, require_known, shown
from lwptv_lightning.search.apart import require_apart
from lwptv_lightning.search.gates import Gates
from lwptv_lightning.search.portions import (
    Shares,
    count_of,
    divided,
    halves,
    mixed,
    names_of,
    positions_of,
    require_enough,
)
from lwptv_lightning.search.space import GATES_FACTORS, SearchSpace, name_of, rule_in_words
from lwptv_lightning.search.trials import Entry

LEARNT_ON = 64
"""Validation samples of each set that are set apart to learn on, at most."""
_FEWEST_TO_LEARN_ON = 16


@dataclass(frozen=True)
class Prepared:
    """What a search needs.

    Attributes:
        space: What is tried.
        pool: Its candidates by name.
        validation: ID loaders to choose by.
        test: Loaders to report.
        samples: ID loaders to learn and to measure on; none where nothing does.
        recalibrate: Whether batch normalisation is measured anew.
        shares: The validation samples in growing shares.
        notes: Where samples come from, and what was left out.
        halved: Whether validation and test samples are halves of the same sets.
    """

    space: SearchSpace
    pool: Mapping[str, Entry]
    validation: Mapping[str, Any]
    test: Mapping[str, Any]
    samples: Mapping[str, Any] | None
    recalibrate: bool
    shares: Shares
    notes: tuple[str, ...]
    halved: bool

    @classmethod
    def of(
        cls,
        module: MergeModule,
        validation: Mapping[str, Any] | None,
        test: Mapping[str, Any],
        space: SearchSpace | Mapping[str, Any] | None,
        samples: Mapping[str, Any] | None,
        recalibrate: bool | None,
        seed: int,
        options: Mapping[str, Any],
    ) -> Prepared:
        """Check what was given to `tune`; no test loader is looked into, but ID sets that are to be divided."""
        space = _space(space)
        test = _loaders(module, "test", test)
        notes: list[str] = [*space.left_out()]
        halved = not validation
        if halved:
            inside = {name: test[name] for name in names_of(test, "id")}
            if not inside:
                raise ValueError(
                    "there is no ID set to choose by: give validation loaders such as {'id/svhn': loader}, or ID sets "
                    "among the test loaders, which are then divided in two."
                )
            validation, rest = halves(inside, seed)
            test = {name: rest.get(name, loader) for name, loader in test.items()}
            notes.append(
                f"No validation sets were given: each ID set was divided in two at random (seed {seed}), one half to "
                "choose by and one to report on."
            )
        else:
            validation = _loaders(module, "validation", validation)
            if outside := names_of(validation, "ood"):
                raise ValueError(f"validation holds {outside[0]!r}: choices are made on ID sets alone.")
            require_apart(validation, test)
            require_enough(validation, "these are the validation sets")
        given = samples is not None
        if samples is not None:
            samples = _loaders(module, "samples", samples)
        normalises = any(name.endswith("running_mean") for name in (*module.vectors.averaged, *module.vectors.names))
        recalibrate = normalises if recalibrate is None else bool(recalibrate) and normalises
        learnt = _learnt_rules(module, space, samples, validation, notes)
        needs = {rule.needs for rule in space.rules if rule.needs}  # type: ignore[union-attr]
        needs = needs if not (module.options.keys() | options.keys()) & {"statistics", "data"} else set()
        if samples is None and (learnt or needs):
            samples, validation = _apart(validation, seed, notes, sorted({*learnt, *needs}))
        if recalibrate:
            where = "samples that were given" if given else "these samples" if samples else "validation samples"
            notes.append(
                f"Batch normalisation was measured anew for each recipe, on {where} of the ID sets. A model that "
                "is merged by a recipe alone, without that, has other figures."
            )
        if not (learnt or needs or recalibrate):
            samples = None
        elif not given:
            samples = mixed(validation if samples is None else samples, seed)
        return cls(
            space,
            _pool(space, learnt),
            validation,
            test,
            samples,
            recalibrate,
            Shares(validation, seed),
            tuple(notes),
            halved,
        )


def _space(given: Any) -> SearchSpace:
    if isinstance(given, SearchSpace):
        return given
    require_kind("space", given, Mapping | None, "a SearchSpace, or a mapping of its arguments")
    for name in given or {}:
        require_known("argument of a search space", name, SearchSpace.__dataclass_fields__)
    return SearchSpace(**{name: value for name, value in (given or {}).items() if value is not None})


def _loaders(module: MergeModule, what: str, given: Any) -> dict[str, Any]:
    """Return loaders by name, of which nothing but the names is looked at."""
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"{what} must be a dict such as {{'id/svhn': loader}}, not {shown(given)}.")
    require_groups_apart(map(str, given))
    for name, loader in given.items():
        if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
            raise ValueError(f"{what}: {name!r} is a data set, which yields samples; give a DataLoader of it.")
    module.heads.require_for(given)
    module.require_logits()
    module.metric_choice.require_of_classes("tune", module.heads_for(given))
    return dict(given)


def _learnt_rules(
    module: MergeModule,
    space: SearchSpace,
    samples: Mapping[str, Any] | None,
    validation: Mapping[str, Any],
    notes: list[str],
) -> tuple[str, ...]:
    """Return the rules on whose parts coefficients are learnt; where they were not asked for, only if samples allow."""
    rules = space.gates_rules()
    if not rules:
        return ()
    given = samples if samples is not None else validation
    own = own_tasks(given, module.vectors.tasks)
    why = ""
    if sorted(own.values()) != sorted(module.vectors.tasks):
        why = f"each task needs one set of its own to learn on, and there are {', '.join(map(repr, given))}"
    elif samples is None and (few := _too_few(validation)):
        why = f"{few[0]!r} has too few validation samples to set {_FEWEST_TO_LEARN_ON} apart to learn on"
    if why and space.gates is not None:
        raise ValueError(f"gates={list(rules)}: {why}; give samples of each task, or gates=False.")
    if why:
        notes.append(f"No coefficients were learnt: {why}.")
    return () if why else rules


def _too_few(validation: Mapping[str, Any]) -> list[str]:
    """Return the sets that are too small to set samples apart, or cannot be divided."""
    return [
        name
        for name, loader in validation.items()
        if positions_of(loader) is None or (count_of(loader) or 0) < 3 * _FEWEST_TO_LEARN_ON
    ]


def _apart(
    validation: Mapping[str, Any], seed: int, notes: list[str], what: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return samples to learn on, and the validation samples that are left."""
    if few := _too_few(validation):
        raise ValueError(
            f"{', '.join(what)} need samples to learn on, and validation set {few[0]!r} has too few to set "
            f"{_FEWEST_TO_LEARN_ON} apart: give samples, such as {{{few[0]!r}: loader}}, or more of them."
        )
    counts = {name: min(LEARNT_ON, (count_of(loader) or 0) // 3) for name, loader in validation.items()}
    told = f"{min(counts.values())}" + (f" to {max(counts.values())}" if len(set(counts.values())) > 1 else "")
    notes.append(
        f"{told} validation samples of each ID set were set apart at random (seed {seed}) to learn on, and chose "
        "nothing."
    )
    return divided(validation, counts, seed)


def _pool(space: SearchSpace, learnt: tuple[str, ...]) -> dict[str, Entry]:
    """Return the candidates of a space, and the learnt ones, which come after what prunes nothing."""
    plain = {name: recipe for name, recipe in space.recipes().items() if not recipe.prunes_layers}
    pruned = {name: recipe for name, recipe in space.recipes().items() if recipe.prunes_layers}
    found = {name: _entry(recipe) for name, recipe in plain.items()}
    for rule in learnt:
        for factor in GATES_FACTORS:
            found[f"{rule} x {factor:g}, coefficients"] = Entry(
                Gates(rule=rule, scale=factor), rule_in_words(MergeRecipe(rule)), "learnt", factor
            )
    return found | {name: _entry(recipe) for name, recipe in pruned.items()}


def _entry(recipe: MergeRecipe) -> Entry:
    rule, scale = rule_in_words(recipe), recipe.effective_scale
    if not recipe.prunes_layers:
        return Entry(recipe, rule, "", scale)
    twin = name_of(recipe.replace(score=MergeRecipe().score, ratio=0.0))
    return Entry(recipe, rule, f"{recipe.score} {recipe.ratio:g}", scale, twin)
