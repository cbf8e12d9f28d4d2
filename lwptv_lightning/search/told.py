"""What a search found, as a report takes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lwptv_lightning.evaluation import MergeModule
from lwptv_lightning.merging import merge, plan_pruning
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import own_tasks
from lwptv_lightning.report import Findings, PairedDifference, Point, SetAbout, Similarity, library_versions
from lwptv_lightning.search.geometry import changes_by_layer, cosines
from lwptv_lightning.search.space import REFERENCE, rule_in_words
from lwptv_lightning.search.tuned import BASE, TuneResult

TITLE = "Which recipe for these models"
_SECONDS = (
    "Seconds are what a merge takes on its own: saliency statistics, pruning and the rule, no evaluation. For random "
    "masks it is their mean."
)


def findings_of(found: TuneResult, module: MergeModule, *, run: str = "", **options: Any) -> Findings:
    """Return what a search found, for `lwptv_lightning.report.write_report`.

    Args:
        found: What `tune` returned.
        module: The module that it was given.
        run: What tells this run from others; see `Findings`.
        options: Those of merging that it was given.
    """
    vectors, recipe = module.vectors, found.recipe
    options = {**module.options, **options}
    base, tasks = vectors.fingerprints()
    own = own_tasks(found.test.outcomes, vectors.tasks)
    plan = None
    if recipe.prunes_layers:
        plan = plan_pruning(vectors, recipe, module.layers(recipe.granularity), **options)
    compared = list(dict.fromkeys((found.name, found.unpruned, REFERENCE)))
    return Findings(
        title=TITLE,
        table=found.table,
        conclusion=found.recommendation,
        differences=_paired(found),
        sets=_sets(found, module),
        points=tuple(_points(found)),
        curves=_curves(found),
        plan=plan,
        experts={
            task: found.test.figures(found.experts[task])[loader]
            for loader, task in own.items()
            if task in found.experts
        },
        compared=compared,
        similarity=Similarity(vectors.tasks, cosines(vectors)) if len(vectors) > 1 else None,
        changes=_changes(found, module, compared, options),
        recipe=recipe,
        seconds=_SECONDS,
        versions=library_versions(),
        fingerprints={"base": base, **tasks},
        seeds={"samples, orders and intervals": found.seed, "random masks": 0},
        notes=_notes(found),
        run=run,
    )


def _paired(found: TuneResult) -> tuple[PairedDifference, ...]:
    return tuple(
        PairedDifference(found.name, other, {over: (each.value, each.low, each.high) for over, each in own.items()})
        for other, own in found.differences.items()
    )


def _sets(found: TuneResult, module: MergeModule) -> tuple[SetAbout, ...]:
    about = {"id": "a task's own domain, not used to choose", "ood": "another domain, which nothing was chosen by"}
    return tuple(
        SetAbout(name, outcomes.shape[1], None, about[name.partition("/")[0]])
        for name, outcomes in found.test.outcomes.items()
    )


def _points(found: TuneResult) -> Iterator[Point]:
    figures = found.test.figures
    yield Point(BASE, figures(BASE), "base", BASE)
    for task, name in found.experts.items():
        yield Point(name, figures(name), "expert", task)
    for name in found.masks:
        yield Point(name, figures(name), "random", "random masks")
    chosen = set(found.chosen.values())
    named = (*found.curves.get("unpruned", ()), *found.curves.get("pruned", ()), found.unpruned, REFERENCE, *chosen)
    for name in dict.fromkeys(named):
        recipe = found.recipes[name]
        yield Point(name, figures(name), _family(recipe), f"{recipe.effective_scale:g}", chosen=name in chosen)


def _family(recipe: MergeRecipe) -> str:
    if recipe.coefficients is not None:
        return "learnt"
    return "pruned" if recipe.prunes_layers else "unpruned"


def _curves(found: TuneResult) -> dict[str, tuple[tuple[float, float], ...]]:
    """Return ID validation accuracy against ratio for each score, at the chosen rule and scale."""
    chosen = found.recipe
    curves: dict[str, dict[float, float]] = {}
    for name in found.validation.names:
        recipe = found.recipes[name]
        alike = rule_in_words(recipe) == rule_in_words(chosen) and recipe.effective_scale == chosen.effective_scale
        if alike and recipe.coefficients is None and recipe.score != "random":
            accuracy = found.validation.figures(name)["id/avg"]
            curves.setdefault(recipe.score if recipe.prunes_layers else "", {})[recipe.ratio] = accuracy
    plain = curves.pop("", {})
    whole = {score: sorted({**plain, **own}.items()) for score, own in curves.items()}
    return {score: tuple(points) for score, points in whole.items() if len(points) > 1}


def _changes(
    found: TuneResult, module: MergeModule, names: list[str], options: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Return how far the compared recipes are from the base, layer by layer."""
    vectors, layers = module.vectors, module.layers("module")
    models = {}
    for name in names:
        recipe = found.recipes[name]
        data = {} if found.data is None or not recipe.rule.needs else {"data": found.data}
        models[name] = merge(vectors, recipe, module.layers(recipe.granularity), **{**options, **data})
    return changes_by_layer(models, vectors, layers)


def _notes(found: TuneResult) -> tuple[str, ...]:
    shown = (
        "The points of the chosen rule at other scales are shown on test samples, and nothing was chosen by them: "
        "choices were made, and written, before a test sample was looked at."
    )
    curves = "Accuracy against ratio is that on validation samples." if _curves(found) else ""
    return tuple(filter(None, (found.searched, *found.notes, shown, curves)))
