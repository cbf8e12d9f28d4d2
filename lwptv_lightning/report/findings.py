"""What a report tells, as plain values: whoever measured fills `Findings`, and `write_report` writes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lwptv_lightning.merging import PruningPlan
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import LoaderName, require_finite, require_kind, require_known, require_texts
from lwptv_lightning.report.table import ResultTable

FAMILIES = ("base", "expert", "unpruned", "pruned", "random", "learnt")
"""What a point of a picture can be: the base, a task's own model, a merge without pruning, one pruned by a score, one
with a random mask as a control, or one with what was learnt on data."""

Interval: TypeAlias = tuple[float, float, float]
"""A difference, the lower and the upper end of its interval, as fractions."""


@dataclass(frozen=True)
class PairedDifference:
    """By how much one model is better than another on the same samples.

    Attributes:
        name: The one.
        other: The one that is subtracted.
        over: What is averaged over, such as ``"id"`` or ``"ood/near"``, to value and ends of the interval, as
            fractions.
    """

    name: str
    other: str
    over: Mapping[str, Interval]

    def __post_init__(self) -> None:
        _require_text("a difference's name", self.name)
        _require_text("a difference's other", self.other)
        require_kind("a difference's over", self.over, Mapping, "a mapping such as {'id': (0.01, -0.02, 0.04)}")
        for over, interval in self.over.items():
            if not (isinstance(interval, tuple | list) and len(interval) == 3):
                raise TypeError(f"the difference over {over!r} must be (value, low, high), not {interval!r}.")


@dataclass(frozen=True)
class SetAbout:
    """What an evaluated set is.

    Attributes:
        name: As its loader is called, ``"id/cats"`` or ``"ood/far/cats_drawn"``.
        images: How many samples it has; ``None`` where that is not known.
        classes: How many classes.
        about: What it is, in words.
    """

    name: str
    images: int | None = None
    classes: int | None = None
    about: str = ""

    def __post_init__(self) -> None:
        LoaderName.parse(self.name)
        _require_text("what is said about a set", self.about)


@dataclass(frozen=True)
class Point:
    """A model in the picture of OOD over ID accuracy.

    Attributes:
        name: The model's name.
        figures: As in `ResultRow`; the averages ``id/avg``, ``ood/avg`` and those of groups are drawn.
        family: One of `FAMILIES`, which says colour and shape.
        label: What stands beside it, such as its coefficient; of random masks the same for all draws of a kind.
        chosen: Whether this is what the run chose or recommends.
    """

    name: str
    figures: Mapping[str, float]
    family: str = "unpruned"
    label: str = ""
    chosen: bool = False

    def __post_init__(self) -> None:
        _require_text("a point's name", self.name)
        _require_text("a point's label", self.label)
        require_kind("a point's figures", self.figures, Mapping, "a mapping of figures such as {'id/avg': 0.5}")
        require_known("family", self.family, FAMILIES)


@dataclass(frozen=True)
class Similarity:
    """How alike task vectors are.

    Attributes:
        tasks: The T tasks.
        cosines: Cosine of each one's task vector to each other's, T rows of T.
    """

    tasks: Sequence[str]
    cosines: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        tasks = require_texts("a similarity's tasks", self.tasks, "the tasks' names")
        rows = [len(row) for row in self.cosines]
        if rows != [len(tasks)] * len(tasks):
            raise ValueError(f"cosines must be {len(tasks)} rows of {len(tasks)} numbers, one for each task.")
        object.__setattr__(self, "tasks", tasks)
        object.__setattr__(self, "cosines", tuple(tuple(map(float, row)) for row in self.cosines))


@dataclass(frozen=True)
class Findings:
    """What one run found. Only title and table are needed: what is absent is left out of the report.

    Attributes:
        title: The report's title.
        table: The rows; figures of every set, averages, seconds and notes.
        conclusion: What follows from it, in a few sentences, each a paragraph; the report begins with them.
        differences: Paired differences with their intervals.
        confidence: Coverage of these intervals.
        sets: What the evaluated sets are.
        points: Models in the picture of OOD over ID accuracy; any number.
        curves: Score to pairs of ratio and ID average, as fractions.
        plan: Scores and mask of a pruned model.
        experts: Task to its own expert's accuracy on its own set, a fraction.
        compared: Names of rows whose accuracy on each task is compared with the experts'; by default the chosen points
            that are rows, or the last rows.
        similarity: Cosines between the task vectors.
        changes: Layer to model to the norm of that model's change from the base there; layers in execution order.
        recipe: The recipe that the report is about.
        seconds: What the column of seconds counts, where that is something else than merging.
        versions: Library to version; see `library_versions`.
        fingerprints: What was merged, such as ``"base"`` and tasks, to fingerprints.
        seeds: What was drawn, to its seed.
        notes: Further remarks, each a paragraph.
        run: What tells this run from others, such as a fingerprint of all that went into it: a report of the same title
            and run is replaced by a later one. By default it comes from fingerprints, recipe and the sets' names.

    Example:
        >>> from lwptv_lightning.report import ResultRow
        >>> Findings("My merge", ResultTable([ResultRow("base", {"id/a": 0.5, "id/avg": 0.5})])).points
        ()
    """

    title: str
    table: ResultTable
    conclusion: Sequence[str] = ()
    differences: Sequence[PairedDifference] = ()
    confidence: float = 0.95
    sets: Sequence[SetAbout] = ()
    points: Sequence[Point] = ()
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    plan: PruningPlan | None = None
    experts: Mapping[str, float] = field(default_factory=dict)
    compared: Sequence[str] = ()
    similarity: Similarity | None = None
    changes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    recipe: MergeRecipe | None = None
    seconds: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, str | None] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    run: str = ""

    def __post_init__(self) -> None:
        for name in ("title", "seconds", "run"):
            _require_text(name, getattr(self, name))
        if not self.title.strip():
            raise ValueError("title is empty; a report has one.")
        require_kind("table", self.table, ResultTable, "a ResultTable")
        for name in ("conclusion", "notes", "compared"):
            object.__setattr__(self, name, require_texts(name, getattr(self, name), "texts, such as ('...',)"))
        for name, kind in (("differences", PairedDifference), ("sets", SetAbout), ("points", Point)):
            object.__setattr__(self, name, _all_of(name, getattr(self, name), kind))
        for name in ("curves", "experts", "changes", "versions", "fingerprints", "seeds"):
            require_kind(name, getattr(self, name), Mapping, "a mapping")
        require_kind("plan", self.plan, PruningPlan | None, "a PruningPlan")
        require_kind("similarity", self.similarity, Similarity | None, "a Similarity")
        require_kind("recipe", self.recipe, MergeRecipe | None, "a MergeRecipe")
        if not 0 < require_finite("confidence", self.confidence) < 1:
            raise ValueError(f"confidence must be a number in (0, 1), not {self.confidence!r}.")
        rows = [row.name for row in self.table.rows]
        for name in self.compared:
            require_known("row", name, rows)

    @property
    def identity(self) -> str:
        """What tells the run from others, in 16 characters; see ``run``."""
        if self.run:
            return identity_of(self.run)
        recipe = None if self.recipe is None else self.recipe.to_dict()
        sets = [name for name in self.table.columns if not LoaderName.of_figure(name).is_average]
        return identity_of({"fingerprints": dict(self.fingerprints), "recipe": recipe, "sets": sets})


def identity_of(what: Any) -> str:
    """Return 16 characters that differ for values that differ: texts, numbers, and collections of these.

    Example:
        >>> identity_of({"rule": "ties"}) == identity_of({"rule": "ties"}) != identity_of({"rule": "dare"})
        True
    """
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _require_text(what: str, value: Any) -> None:
    require_kind(what, value, str, "a text")


def _all_of(what: str, values: Any, kind: type) -> tuple[Any, ...]:
    require_kind(what, values, Sequence, f"a sequence of {kind.__name__}")
    for value in values:
        require_kind(f"each of {what}", value, kind, f"a {kind.__name__}")
    return tuple(values)
