"""The controls of a merge: the base, the experts, the same merge without pruning, and with random masks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer

from lwptv_lightning.evaluation import MergeModule, batch_limit, draws_kept, trainer_of, with_own_workers
from lwptv_lightning.functional import plain_state
from lwptv_lightning.merging import Undo
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import own_tasks
from lwptv_lightning.report import PairedDifference, Point, ResultRow
from lwptv_lightning.search import Candidate, SweepResult, sweep
from lwptv_lightning.task_vectors import TaskVectors

RANDOM_MASKS = 10


@dataclass(frozen=True)
class Controls:
    """What was measured beside a merge, on the same samples.

    Attributes:
        name: The merge, as its row is called.
        recipe: Its recipe.
        tasks: The experts' tasks.
        result: The figures of all models.
    """

    name: str
    recipe: MergeRecipe
    tasks: tuple[str, ...]
    result: SweepResult

    @classmethod
    def measured(
        cls,
        trainer: Trainer,
        module: MergeModule,
        name: str,
        loaders: Mapping[str, Any],
        vectors: TaskVectors | None = None,
    ) -> Controls:
        """Evaluate what a module holds and its controls, by a trainer of their own on the same device.

        Nothing of the run is touched: random states, the module's metrics, place and trainer are put back.

        Args:
            trainer: The run's.
            module: What holds the merge.
            name: What the merge is called.
            loaders: Those of the run.
            vectors: The task vectors that were merged, where these are not the module's own.
        """
        recipe, held = module.installed or module.recipe, module.vectors
        vectors = held if vectors is None else vectors
        candidates = {name: plain_state(module.model)} | _controls(name, recipe, vectors)
        own = {loader: with_own_workers(batches) for loader, batches in loaders.items()}
        outer = trainer_of(module)
        with draws_kept(own.values()), torch.inference_mode(False), torch.no_grad(), Undo() as undo:
            undo.add(_put_back, module, module.device, outer, module.metrics, held)
            module.vectors = vectors
            with _silence():
                result = sweep(_quiet(trainer), module, candidates, own)
            undo.take_back()
        return cls(name, recipe, vectors.tasks, result)

    @property
    def rows(self) -> list[ResultRow]:
        """The controls' rows; random masks have one, with their range beside it."""
        names = [name for name in self.result.names if name != self.name and name not in self._masks]
        rows = [
            ResultRow(name, self.result.figures(name), self._seconds(name) if name == self._twin else None)
            for name in names
        ]
        return [*rows, *([self._random_row()] if self._masks else [])]

    @property
    def points(self) -> list[Point]:
        """All models but the merge itself, for a picture."""
        found = [Point(name, self.result.figures(name), "random", "random") for name in self._masks]
        experts = {f"expert {task}": task for task in self.tasks}
        for name in self.result.names:
            figures = self.result.figures(name)
            if name == "base":
                found.append(Point(name, figures, "base", name))
            elif name in experts:
                found.append(Point(name, figures, "expert", experts[name]))
            elif name == self._twin != self.name:
                found.append(Point(name, figures, "unpruned", "unpruned"))
        return found

    @property
    def differences(self) -> list[PairedDifference]:
        """How the merge differs from its controls, over ID, OOD and its groups."""
        overs = dict.fromkeys(["id", "ood"])
        overs |= dict.fromkeys("/".join(name.split("/")[:2]) for name in self.result.outcomes if name.count("/") > 1)
        known = [over for over in overs if any(name.startswith(f"{over}/") for name in self.result.outcomes)]
        others = [*([self._twin] if self._twin in self.result.names and self._twin != self.name else []), "base"]
        found = []
        for other in others:
            each = {over: self.result.difference(self.name, other, over) for over in known}
            intervals = {over: (each[over].value, each[over].low, each[over].high) for over in known}
            found.append(PairedDifference(self.name, other, intervals))
        return found

    @property
    def experts(self) -> dict[str, float]:
        """Each task's accuracy by its own expert."""
        own = own_tasks(self.result.outcomes, self.tasks)
        return {task: self.result.figures(f"expert {task}")[loader] for loader, task in own.items()}

    @property
    def conclusion(self) -> list[str]:
        """What follows, in sentences that the intervals bear."""
        said = [_compared(each) for each in self.differences]
        if self._masks:
            over = "ood/avg" if "ood/avg" in self.result.figures(self.name) else "id/avg"
            own = self.result.figures(self.name)[over]
            behind = sum(self.result.figures(name)[over] < own for name in self._masks)
            words = over.removesuffix("/avg").upper()
            said.append(f"Its {words} average is above that of {behind} of {len(self._masks)} random masks.")
        return said

    @property
    def _twin(self) -> str:
        return _twin_of(self.recipe).describe()

    @property
    def _masks(self) -> list[str]:
        return [name for name in self.result.names if name.startswith(_mask_of(self.name, ""))]

    def _seconds(self, name: str) -> float | None:
        return self.result.seconds.get(name)

    def _random_row(self) -> ResultRow:
        draws = [self.result.figures(name) for name in self._masks]
        mean = {over: sum(draw[over] for draw in draws) / len(draws) for over in draws[0]}
        ranges = [
            f"{over.removesuffix('/avg').upper()} {100 * min(values):.1f} … {100 * max(values):.1f}"
            for over in ("id/avg", "ood/avg")
            if (values := [draw[over] for draw in draws if over in draw])
        ]
        seconds = sum(self.result.seconds.get(name, 0.0) for name in self._masks) / len(draws)
        return ResultRow(f"mean of {len(draws)} random masks", mean, seconds, ", ".join(ranges))


def _controls(name: str, recipe: MergeRecipe, vectors: TaskVectors) -> dict[str, Candidate]:
    found: dict[str, Candidate] = {"base": {each: vectors.base(each) for each in vectors.names}}
    for task in vectors.tasks:
        found[f"expert {task}"] = {each: vectors.expert(task, each) for each in vectors.names}
    twin = _twin_of(recipe)
    if recipe.prunes_layers and twin.describe() != name:
        found[twin.describe()] = twin
    if recipe.ratio > 0:
        for seed in range(RANDOM_MASKS):
            found[_mask_of(name, str(seed))] = recipe.replace(score="random", seed=seed)
    return found


def _twin_of(recipe: MergeRecipe) -> MergeRecipe:
    """Return the same merge without layers pruned."""
    return recipe.replace(ratio=0.0, prune=())


def _mask_of(name: str, seed: str) -> str:
    return f"{name}, random mask {seed}"


def _compared(difference: PairedDifference) -> str:
    told = [
        f"{over.upper() if '/' not in over else over.replace('/', ' ').replace('ood', 'OOD').replace('id', 'ID', 1)} "
        f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        for over, (value, low, high) in difference.over.items()
    ]
    return f"{difference.name} minus {difference.other}, in points with 95 % intervals: {', '.join(told)}."


def _put_back(
    module: MergeModule, device: torch.device, trainer: Trainer | None, metrics: Any, vectors: TaskVectors
) -> None:
    module.to(device)
    module.trainer = trainer
    module.metrics = metrics
    module.vectors = vectors


def takes_all(limit: int | float | None) -> bool:
    """Tell whether a trainer's limit takes all batches; the whole number 1 takes one of them."""
    return limit is None or (isinstance(limit, float) and limit == 1.0)


def _quiet(trainer: Trainer) -> Trainer:
    """Return a trainer on the same device, in the same precision and on as many batches, that says nothing."""
    place = trainer.strategy.root_device
    limit: int | float | None = trainer.limit_test_batches if trainer.testing else trainer.limit_val_batches
    if trainer.training or not trainer.evaluating:  # of a fit, whose own loaders are others
        limit = batch_limit(trainer)
    return Trainer(
        accelerator={"cuda": "gpu"}.get(place.type, place.type),
        devices=[place.index] if place.type == "cuda" and place.index is not None else 1,
        precision=trainer.precision,
        limit_val_batches=None if takes_all(limit) else limit,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Keep back what Lightning says of a trainer's devices, which the run's own said already."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def require_controls(trainer: Trainer, module: Any, loaders: Mapping[str, Any]) -> None:
    """Raise, before anything is evaluated, where controls could not be measured.

    Raises:
        ValueError: There is no `MergeModule` with task vectors, several processes run, or the metric is of no classes.
    """
    if trainer.world_size > 1:
        raise ValueError(
            f"MergeReport: controls=True evaluates on one process, and there are {trainer.world_size}; run with "
            "devices=1, or `lwptv_lightning.search.sweep` on several."
        )
    if not isinstance(module, MergeModule) or module.held_vectors is None:
        raise ValueError(
            f"MergeReport: controls=True needs a MergeModule with its task vectors, not {type(module).__name__} "
            "without: base and experts are not there to be evaluated."
        )
    module.metric_choice.require_of_classes("MergeReport(controls=True)", module.heads_for(loaders))
