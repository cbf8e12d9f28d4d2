"""Which models are measured, and the rows in which they stand: base, experts, and each recipe beside its controls."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from published import RECIPES
from torch import Tensor

from lwptv_lightning import MergeRecipe, TaskVectors
from lwptv_lightning.search import SweepResult

SMALLER = (0.25, 0.5, 0.75)
"""Parts of a recipe's coefficient at which its unpruned model is measured too."""
RANDOM_MASKS = 3


@dataclass(frozen=True)
class Row:
    """A model's figures.

    Attributes:
        name: What it is.
        figures: Loader name, or an average's such as ``ood/held_out/avg``, to accuracies.
        published: What `published.Reference` calls it, if it is there.
    """

    name: str
    figures: Mapping[str, float]
    published: str | None = None


class Results:
    """What was measured, by candidate.

    Args:
        found: The sweeps.
    """

    def __init__(self, found: Iterable[SweepResult]) -> None:
        self._of = {name: result for result in found for name in result.names}

    def figures(self, name: str) -> dict[str, float]:
        return self._of[name].figures(name)

    def on_half(self, name: str) -> float:
        """Return the average over every other image of the merged tasks, by which a coefficient is chosen."""
        correct = self._of[name].correct(name)
        merged = [float(of[::2].double().mean()) for loader, of in correct.items() if loader.startswith("id/")]
        return sum(merged) / len(merged)


def unmerged(vectors: TaskVectors) -> dict[str, dict[str, Tensor]]:
    """Return the base and the experts as candidates."""
    experts = {expert(task): {name: vectors.expert(task, name) for name in vectors.names} for task in vectors.tasks}
    return {"base": {name: vectors.base(name) for name in vectors.names}, **experts}


def expert(task: str) -> str:
    return f"expert {task}"


def named(recipe: MergeRecipe) -> str:
    """Return a candidate's name, which tells it from every other."""
    return recipe.to_json()


def candidates_of(recipe: MergeRecipe) -> dict[str, MergeRecipe]:
    """Return a recipe and its controls as candidates."""
    return {named(each): each for each in (recipe, *controls_of(recipe))}


def controls_of(recipe: MergeRecipe) -> list[MergeRecipe]:
    """Return what a recipe that prunes is measured against."""
    return [unpruned(recipe), *smaller(recipe), *random_masks(recipe)] if recipe.prunes_layers else []


def unpruned(recipe: MergeRecipe) -> MergeRecipe:
    return recipe.replace(ratio=0.0, keep=(), prune=())


def smaller(recipe: MergeRecipe) -> list[MergeRecipe]:
    return [unpruned(recipe).replace(scale=part * recipe.effective_scale) for part in SMALLER]


def random_masks(recipe: MergeRecipe) -> list[MergeRecipe]:
    return [recipe.replace(score="random", seed=seed) for seed in range(RANDOM_MASKS)]


def rows_of(recipes: Iterable[MergeRecipe], tasks: Iterable[str], results: Results) -> list[Row]:
    """Return base, experts, and each recipe with its controls below it; what stands there already is not repeated."""
    rows = [Row("base", results.figures("base"), "base"), experts_alone(tasks, results)]
    for row in chain.from_iterable(_with_controls(recipe, results) for recipe in recipes):
        if row.name not in {each.name for each in rows}:
            rows.append(row)
    return rows


def experts_alone(tasks: Iterable[str], results: Results) -> Row:
    """Return each expert's figure on its own set, and the mean of all on the others."""
    every = {task: results.figures(expert(task)) for task in tasks}
    figures: dict[str, Any] = {f"id/{task}": every[task][f"id/{task}"] for task in every}
    figures["id/avg"] = sum(figures.values()) / len(figures)
    for loader in next(iter(every.values())):
        if loader.startswith("ood/"):
            figures[loader] = sum(row[loader] for row in every.values()) / len(every)
    return Row("each expert alone", figures, "experts")


def _with_controls(recipe: MergeRecipe, results: Results) -> Iterator[Row]:
    if not recipe.prunes_layers:
        yield Row(recipe.describe(), results.figures(named(recipe)), published_as(recipe))
        return
    yield from _with_controls(unpruned(recipe), results)
    best = max(smaller(recipe), key=lambda each: results.on_half(named(each)))
    yield Row(f"control: {best.describe()}, the best smaller coefficient", results.figures(named(best)))
    masked = [results.figures(named(each)) for each in random_masks(recipe)]
    means = {loader: sum(row[loader] for row in masked) / len(masked) for loader in masked[0]}
    yield Row(f"control: {random_masks(recipe)[0].describe()}, mean of {RANDOM_MASKS} masks", means)
    yield Row(recipe.describe(), results.figures(named(recipe)))


def published_as(recipe: MergeRecipe) -> str | None:
    """Return the name under which a recipe's figures are published, in whatever way its coefficient was given."""
    for rule, published in RECIPES.items():
        if recipe.replace(scale=recipe.effective_scale) == published.replace(scale=published.effective_scale):
            return rule
    return None
