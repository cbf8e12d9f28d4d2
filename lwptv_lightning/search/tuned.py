"""`TuneResult`: what a search chose, and what the chosen recipes are worth on test samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import LoaderName
from lwptv_lightning.report import ResultRow, ResultTable
from lwptv_lightning.search.compare import Difference, SweepResult
from lwptv_lightning.search.recommendation import Evidence, recommend
from lwptv_lightning.search.space import REFERENCE

BASE = "base"
_IN_SENTENCES = ("id", "ood")


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """What `tune` found.

    Attributes:
        recipes: Name to recipe, of all that was evaluated on all validation samples, controls included.
        candidates: The names of all candidates that were tried; those that were evaluated on all validation samples,
            which alone can be chosen, are in ``validation``.
        chosen: ``"best"`` and ``"one_standard_error"`` to the candidate that each chooses by ID validation samples.
        choice: Which of the two is `recipe`.
        validation: What candidates and controls got right on all validation samples.
        test: Base, experts, the chosen candidates, controls and curves on the test samples, in one pass after the
            choice.
        experts: Task to its expert's name in ``test``.
        unpruned: The chosen rule without pruning, tuned as well.
        masks: The chosen recipe with random masks, at the scale that is tuned for them; none where it has no mask.
        curves: ``"pruned"`` and ``"unpruned"`` to the chosen recipe with and without pruning at all scales of the
            search. They are shown, and nothing is chosen by them.
        searched: What was tried, in words.
        notes: Where samples come from, and what was left out.
        halved: Whether validation and test samples are halves of the same ID sets.
        recalibrated: Whether batch normalisation was measured anew for each recipe.
        data: What rules that need data were given, where it was collected on samples.
        norms: Running statistics of batch normalisation that were measured for `recipe`, by the model's names.
        seconds: How long all of it took.
        seed: Of all that was drawn.
    """

    recipes: Mapping[str, MergeRecipe]
    candidates: tuple[str, ...]
    chosen: Mapping[str, str]
    choice: str
    validation: SweepResult
    test: SweepResult
    experts: Mapping[str, str]
    unpruned: str
    masks: tuple[str, ...] = ()
    curves: Mapping[str, tuple[str, ...]]
    searched: str
    notes: tuple[str, ...] = ()
    halved: bool = False
    recalibrated: bool = False
    data: Any = None
    norms: Mapping[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        """The chosen candidate."""
        return self.chosen[self.choice]

    @property
    def recipe(self) -> MergeRecipe:
        """The chosen candidate's recipe."""
        return self.recipes[self.name]

    @property
    def masks_name(self) -> str:
        """What the random masks are called together."""
        return f"{self.masks[0].rpartition(', mask ')[0]}, mean of {len(self.masks)} masks" if self.masks else ""

    @property
    def over(self) -> tuple[str, ...]:
        """What differences are averaged over: the ID sets, groups of OOD sets, and all OOD sets."""
        parsed = [LoaderName.parse(loader) for loader in self.test.outcomes]
        groups = dict.fromkeys(f"ood/{name.group}" for name in parsed if name.domain == "ood" and name.group)
        domains = {name.domain for name in parsed}
        inner = list(groups) if len(groups) > 1 else []
        return tuple(over for over in ("id", *inner, "ood") if over in inner or over in domains)

    @cached_property
    def differences(self) -> dict[str, dict[str, Difference]]:
        """The chosen recipe minus each other row, with 95 % paired bootstrap intervals over the test samples."""
        others: dict[str, str | Sequence[str]] = {BASE: BASE}
        others |= {expert: expert for expert in self.experts.values()}
        if len(self.experts) > 1:
            others["mean of the experts"] = tuple(self.experts.values())
        others |= {name: name for name in (REFERENCE, self.unpruned, *self.chosen.values()) if name != self.name}
        if self.masks:
            others[self.masks_name] = self.masks
        return {
            name: {over: self.test.difference(self.name, other, over, seed=self.seed) for over in self.over}
            for name, other in others.items()
        }

    @property
    def table(self) -> ResultTable:
        """The test figures: base and experts, what was chosen, and what it is compared with."""
        roles: dict[str, list[str]] = {}
        for choice, name in self.chosen.items():
            roles.setdefault(name, []).append(f"chosen by {choice}")
        roles.setdefault(self.unpruned, []).append("tuned without pruning")
        roles.setdefault(REFERENCE, []).append("not tuned")
        rows = [ResultRow(name, self.test.figures(name)) for name in (BASE, *self.experts.values())]
        for name, said in roles.items():
            rows.append(ResultRow(name, self.test.figures(name), self.test.seconds.get(name), ", ".join(said)))
        if self.masks:
            rows.append(self._masks_row())
        return ResultTable(rows)

    def _masks_row(self) -> ResultRow:
        draws = [self.test.figures(name) for name in self.masks]
        mean = {figure: sum(draw[figure] for draw in draws) / len(draws) for figure in draws[0]}
        ranges = [
            f"{over.upper()} {100 * min(values):.1f} to {100 * max(values):.1f}"
            for over in _IN_SENTENCES
            if (values := [draw[f"{over}/avg"] for draw in draws if f"{over}/avg" in draw])
        ]
        seconds = sum(self.test.seconds.get(name, 0.0) for name in self.masks) / len(self.masks)
        return ResultRow(self.masks_name, mean, seconds, ", ".join(ranges))

    @cached_property
    def recommendation(self) -> tuple[str, str]:
        """What to take, and what speaks against relying on it: two sentences that claim no more than the intervals."""
        named = {"reference": REFERENCE, "unpruned": self.unpruned, "masks": self.masks_name, "base": BASE}
        recipe = self.recipe
        prunes = bool(recipe.prunes_layers or recipe.coefficients)
        if not prunes:
            named.pop("unpruned")
        others = {role: self.differences[name] for role, name in named.items() if name in self.differences}
        fewest = tuple(min(map(_size, result.outcomes.values())) for result in (self.test, self.validation))
        return recommend(
            Evidence(
                self.name,
                self.choice,
                len(self.candidates),
                self.test.figures(self.name),
                others,
                prunes,
                fewest,  # type: ignore[arg-type]
                self.halved,
                recipe.coefficients is not None,
            )
        )


def _size(outcomes: object) -> int:
    return int(outcomes.shape[1])  # type: ignore[attr-defined]
