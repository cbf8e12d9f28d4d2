"""What a trainer's evaluations of merged models found, as a report takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from lwptv_lightning.callbacks.online_merge import OnlineMerge
from lwptv_lightning.callbacks.prune_and_merge import PruneAndMerge
from lwptv_lightning.callbacks.report_controls import RANDOM_MASKS, Controls, takes_all
from lwptv_lightning.evaluation import MergeModule, callbacks_of, stage_of
from lwptv_lightning.functional import plain_state
from lwptv_lightning.merging import PruningPlan
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import LoaderName
from lwptv_lightning.report import (
    Findings,
    Point,
    ResultRow,
    ResultTable,
    SetAbout,
    Similarity,
    identity_of,
    library_versions,
    percent,
)
from lwptv_lightning.search import changes_by_layer, cosines
from lwptv_lightning.task_vectors import TaskVectors

TITLE = "Merged models over ID and OOD loaders"
_EQUAL = 1e-4
"""What figures in single precision may differ by."""


@dataclass
class Gathered:
    """What is known after some evaluations.

    Attributes:
        run: What tells the run from others: what is merged and, once they are known, the sets.
        fingerprints: Those of what is merged.
        rows: A row for each evaluation.
        points: What of these can be drawn.
        controls: The last controls.
        plan: What the last merge pruned.
        recipe: The last recipe.
        sets: What the last loaders are.
        notes: Remarks on the last merge.
        experts: Accuracies of experts, where they were given.
        similarity: How alike the task vectors are.
        changes: How far the last merge is from the base.
        knows_sets: Whether the run is told by its sets, too.
    """

    run: str
    fingerprints: Mapping[str, str | None]
    rows: list[ResultRow] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    controls: Controls | None = None
    plan: PruningPlan | None = None
    recipe: MergeRecipe | None = None
    sets: Sequence[SetAbout] = ()
    notes: Sequence[str] = ()
    experts: Mapping[str, float] = field(default_factory=dict)
    similarity: Similarity | None = None
    changes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    knows_sets: bool = False

    @classmethod
    def of(cls, trainer: Trainer, module: LightningModule) -> Gathered:
        """Return what is known before a run; all checkpoints are read for their fingerprints."""
        fingerprints: dict[str, str | None] = {}
        merges = []
        for vectors, recipe, held in _merges(trainer, module):
            if vectors is not None:
                base, tasks = vectors.fingerprints()
                own: dict[str, str | None] = {"base": base, **tasks}
            else:
                told = None if held is None else held.provenance()
                own = {} if told is None else {"base": told.base, **told.tasks}
            merges.append([None if recipe is None else recipe.to_dict(), own])
            fingerprints |= own
        return cls(identity_of([type(module).__qualname__, merges]), fingerprints)

    def know_sets(self, sets: Sequence[SetAbout]) -> None:
        """Take what the first evaluation is on, which tells the run from another one of the same merge."""
        if not self.knows_sets:
            self.run = identity_of([self.run, [[each.name, each.images] for each in sets]])
            self.knows_sets = True

    def add(self, name: str, figures: Mapping[str, float], plain: set[str], merged: MergeModule | None) -> None:
        """Add the figures of an evaluation."""
        self.rows.append(ResultRow(name, figures, plain=plain))
        drawn = {figure: value for figure, value in figures.items() if figure not in plain}
        if all(isfinite(drawn.get(over, nan)) for over in ("id/avg", "ood/avg")):
            recipe = None if merged is None else merged.installed or merged.recipe
            family = "pruned" if recipe is not None and recipe.prunes_layers else "unpruned"
            self.points.append(Point(name, drawn, family, name))

    def look_at(self, trainer: Trainer, merged: MergeModule | None, treatment: str | None, fitting: bool) -> None:
        """Take what the last merge is like; in a fit nothing is read for it."""
        self.plan = None if merged is None else merged.plan
        self.recipe = None if merged is None else merged.installed or merged.recipe
        self.notes = () if treatment is None else (f"The last {treatment}.",)
        self.experts = {} if merged is None else merged.expert_accuracy
        vectors = None if merged is None else merged.held_vectors
        if fitting or merged is None or vectors is None or trainer.world_size > 1:
            return
        if self.similarity is None and len(vectors) > 1:
            self.similarity = Similarity(vectors.tasks, cosines(vectors))
        model = {self.rows[-1].name: plain_state(merged.model)}
        self.changes = changes_by_layer(model, vectors, merged.layers())

    @property
    def table(self) -> list[ResultRow]:
        """All rows: base and experts first, then the evaluations, then the other controls."""
        controls = [] if self.controls is None else self.controls.rows
        first = [row for row in controls if row.name == "base" or row.name.startswith("expert ")]
        return [*first, *self.rows, *(row for row in controls if row not in first)]

    def _doubts(self) -> list[str]:
        """Say so where controls saw other samples than the row of the merge, as of shuffled loaders that are cut."""
        if self.controls is None:
            return []
        again = self.controls.result.figures(self.controls.name)
        own = next((row.figures for row in reversed(self.rows) if row.name == self.controls.name), again)
        if all(abs(own.get(name, value) - value) < _EQUAL for name, value in again.items()):
            return []
        return [
            "Evaluated again beside its controls, the merge has other figures than in its row: the loaders give other "
            "samples each time. The differences are of the same samples; the rows are not."
        ]

    def findings(self) -> Findings:
        """Return the report's content."""
        controls = self.controls
        seeds = {} if controls is None else {f"random masks, the first of {RANDOM_MASKS}": 0, "intervals": 0}
        return Findings(
            TITLE,
            ResultTable(self.table),
            conclusion=[*map(_said, self.rows[-1:]), *([] if controls is None else controls.conclusion)],
            differences=[] if controls is None else controls.differences,
            sets=self.sets,
            points=[*([] if controls is None else controls.points), *self.points],
            plan=self.plan,
            experts=self.experts if controls is None else controls.experts,
            similarity=self.similarity,
            changes=self.changes,
            recipe=self.recipe,
            versions=library_versions(),
            fingerprints=self.fingerprints,
            seeds=seeds,
            notes=[*self.notes, *self._doubts()],
            run=self.run,
        )


def sets_of(trainer: Trainer) -> list[SetAbout]:
    """Return what the loaders of a running evaluation are, with as many samples as there are if all are taken."""
    testing = stage_of(trainer) == "test"
    loaders: Any = trainer.test_dataloaders if testing else trainer.val_dataloaders
    whole = takes_all(trainer.limit_test_batches if testing else trainer.limit_val_batches)
    found = []
    for name, loader in loaders.items() if isinstance(loaders, Mapping) else ():
        found.append(SetAbout(name, _samples(loader, trainer.world_size) if whole else None))
    return found


def _samples(loader: Any, processes: int) -> int | None:
    """Return how many samples a loader gives, where that can be told."""
    data, sampler = (getattr(loader, name, None) for name in ("dataset", "sampler"))
    if not isinstance(data, Sized):
        return None
    if not isinstance(loader, DataLoader) or processes > 1:  # of which each has a share
        return len(data)
    if loader.batch_size is None or not isinstance(sampler, Sized):  # batches are the data's or a sampler's own
        return None
    return len(sampler)


def _said(row: ResultRow) -> str:
    shown = [
        f"{over.removesuffix('/avg').upper()} average "
        + (f"{row.figures[over]:.4g}" if over in row.plain else f"{percent(row.figures[over])} %")
        for over in ("id/avg", "ood/avg")
        if over in row.figures
    ]
    return f"{row.name}: {', '.join(shown) if shown else 'figures of single sets, in the table'}."


def _merges(
    trainer: Trainer, module: LightningModule
) -> list[tuple[TaskVectors | None, MergeRecipe | None, MergeModule | None]]:
    """Return what a run merges: task vectors, recipe, and the module that holds it."""
    found: list[tuple[TaskVectors | None, MergeRecipe | None, MergeModule | None]] = []
    if isinstance(module, MergeModule):
        found.append((module.held_vectors, module.recipe, module))
    for callback in callbacks_of(trainer):
        if isinstance(callback, OnlineMerge):
            found.append((callback.module.held_vectors, callback.module.recipe, callback.module))
        elif isinstance(callback, PruneAndMerge) and not (callback.vectors is None and callback.recipe is None):
            found.append((callback.vectors, callback.recipe, None))
    return found


def is_figure(name: str) -> bool:
    """Tell whether something was logged for a loader or an average of some, not only under a domain's own name."""
    parsed = LoaderName.of_figure(name)
    return parsed.domain in ("id", "ood") and bool(parsed.name)
