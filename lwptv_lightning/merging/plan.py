"""`MergePlan`: all that is decided of a merge before its first tensor is made."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from lwptv_lightning.checkpoints import UNKNOWN, Provenance
from lwptv_lightning.engine import DataStatistics, Execution, Stream
from lwptv_lightning.layers import Layers
from lwptv_lightning.merging.alike import made_as, unscaled
from lwptv_lightning.merging.calibrated import Calibrated, plain, rules_of
from lwptv_lightning.merging.combine import (
    Job,
    Piece,
    added_pieces,
    added_to_base,
    magnitudes,
    merged_pieces,
    published_alpha,
)
from lwptv_lightning.merging.held import Held, hold
from lwptv_lightning.merging.memory import needed_memory, require_memory, room_to_remember
from lwptv_lightning.merging.parts import parts_of
from lwptv_lightning.merging.provenance import provenance_of
from lwptv_lightning.merging.prune import PruningPlan, plan_layers
from lwptv_lightning.merging.ties import further_names
from lwptv_lightning.recipe import MergeRecipe, tensor_factors
from lwptv_lightning.registry import natural_order, require_known, steps_of
from lwptv_lightning.rules import MergeRule
from lwptv_lightning.saliency import LayerMask, merged_layers
from lwptv_lightning.task_vectors import TaskVectors


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """A merge that is ready to make its tensors; dict, file, module and graph are what it is poured into.

    Attributes:
        vectors: The task vectors.
        recipe: Rule, scale and pruning.
        execution: Where and how.
        pruning: The layers that the recipe prunes, and the scores that say so; ``None`` where it prunes none, or where
            the mask was given.
        mask: What is pruned; ``None`` for nothing.
        stream: What is left of the weights' task vectors.
        jobs: Name to job of each tensor that is merged, in the order in which they are made.
        owner: Name to the number of its process, of every tensor; those without a job are the base's and come last.
        layers: The layers that were given, in execution order; ``None`` where the tensors' names tell them.
        treatment: How many tensors the rule does its own with, in words, such as those that it treats as matrices;
            ``None`` where it treats all tensors alike.
        data: What was collected on data, for rules that need it.
        held: Name to merged task vector of this process's tensors, where they are in memory; see `holding`.
    """

    vectors: TaskVectors
    recipe: MergeRecipe
    execution: Execution
    pruning: PruningPlan | None
    mask: LayerMask | None
    stream: Stream
    jobs: Mapping[str, Job]
    owner: Mapping[str, int]
    layers: Layers | None = None
    treatment: str | None = None
    data: DataStatistics | None = None
    held: Mapping[str, Held] | None = None

    def rescaled(self, recipe: MergeRecipe, layers: Layers | None = None) -> MergePlan:
        """Return the plan of a recipe that differs in scale, layer scaling, task or calibration; none surveys again.

        What the plan holds in memory serves that one too, where both have the same `made_as`.

        Args:
            recipe: The recipe.
            layers: As in `Merge`, for a plan that was given none.

        Raises:
            ValueError: The recipe differs in something else, or as in `Merge.plan`.
            UnknownNameError: The recipe's task is none of the task vectors'.

        Example:
            >>> from lwptv_lightning.merging import Merge
            >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.tensor([1.0, 2.0])}})
            >>> plan = Merge(vectors, MergeRecipe("ties")).plan().holding()
            >>> [dict(plan.rescaled(MergeRecipe("ties", scale)).tensors())["w"].tolist() for scale in (1, 0.5)]
            [[0.0, 2.0], [0.0, 1.0]]
        """
        if unscaled(recipe) != unscaled(self.recipe):
            differs = "scale, layer_scaling, task or calibrate"
            raise ValueError(f"rescaled takes a recipe that differs from the plan's in {differs}.")
        require_task(recipe, self.vectors)
        source = self if made_as(recipe) == made_as(self.recipe) else self._remade(recipe)
        layers = layers if self.layers is None else self.layers
        with self.execution.ranks.sharing_errors(), self.execution.exact():
            scales = source._scales(recipe, layers)
        jobs = {name: replace(job, scale=scales.get(name, job.scale)) for name, job in source.jobs.items()}
        return replace(source, recipe=recipe, layers=layers, jobs=jobs)

    def holding(self) -> MergePlan:
        """Return the plan with its merged task vectors in memory, or itself where ``max_memory`` leaves no room.

        They are made here once, for this plan and for those that `rescaled` makes of it; each process has its own.
        """
        ranks, limit, names = self.execution.ranks, self.execution.max_memory, self._own_names
        with ranks.sharing_errors():
            if limit is not None:
                elements = sum(self.vectors.headers[name].numel for name in names)
                rules = {name: self.jobs[name].rule for name in self.stream.names}
                needed = needed_memory(rules, self.stream, self._thinned) if rules else 0
                taken = elements * self.stream.dtype.itemsize
                if needed + taken > limit:
                    return self
                self._limit_memo(taken)
            return replace(self, held=hold(self.made(names), self.vectors.headers))

    def pieces(self) -> Iterator[tuple[str, slice, Tensor]]:
        """Make this process's tensors piece by piece.

        Yields:
            A tensor's name, which of its flattened elements, and their values, ``(n,)`` in the base's dtype and not to
            be written to. Pieces of a tensor come one after the other, from the first to the last.

        Raises:
            CheckpointError: A file that was read was changed since it was opened, after the last piece at the latest.

        Warns:
            UserWarning: A task's weights hardly belong to the base; see `TaskVectors.doubts`.
        """
        self.warn_of_doubts()
        own = [name for name, rank in self.owner.items() if rank == self.execution.ranks.rank]
        total = sum(self.vectors.headers[name].numel for name in own)
        yield from steps_of(self._pieces(own), "Merging", total, lambda piece: len(piece[2]))
        self.require_unchanged()

    def _pieces(self, own: Sequence[str]) -> Iterator[tuple[str, slice, Tensor]]:
        yield from self._added(self._own_names)
        for name, first in self.vectors.tied.items():
            if self.owner.get(name) == self.execution.ranks.rank:  # made once more, so that no piece has to be held
                yield from ((name, elements, values) for _, elements, values in self._added([first]))
        for name in own:
            if name not in self.jobs and name not in self.vectors.tied:
                values = self.vectors.base(name).reshape(-1)
                yield name, slice(0, len(values)), values

    def warn_of_doubts(self) -> None:
        """Warn where a task's weights hardly belong to the base; see `TaskVectors.doubts`."""
        if self.execution.ranks.rank == 0:
            for doubt in self.vectors.sample.doubts({name: job.kept.tolist() for name, job in self.jobs.items()}):
                warnings.warn(f"{doubt} `lwptv check` says more.", stacklevel=3)

    def require_unchanged(self) -> None:
        """Raise a `CheckpointError` where a file that is merged was changed since it was opened."""
        for read in (self.vectors, *(self.data or {}).values()):
            getattr(read, "require_unchanged", lambda: None)()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Make the tensors, on the device on which they are merged; merged ones first, in layer order.

        Several processes each merge their own tensors first, and hand them on one by one then.

        Yields:
            Name and tensor; every tensor of the base, on every process.
        """
        yield from self.execution.ranks.spread(self.owner, self._own_tensors(), self._empty)

    def provenance(self, *, hashed: bool = True) -> Provenance:
        """Return what a file of the merged model says of itself; all checkpoints are read for their fingerprints.

        Args:
            hashed: Without it none is read, and ``UNKNOWN`` stands in the place of each of their fingerprints.
        """
        known = None if hashed else (UNKNOWN, dict.fromkeys(self.vectors.tasks, UNKNOWN))
        return provenance_of(self.vectors, self.recipe, self.mask, self.layers, self.data, known)

    def only(self, names: Iterable[str]) -> MergePlan:
        """Return the plan of some of the tensors, which are made as in the whole merge."""
        wanted = set(names)
        return replace(self, owner={name: rank for name, rank in self.owner.items() if name in wanted})

    @property
    def _own_names(self) -> list[str]:
        """The tensors that this process merges."""
        return [name for name, rank in self.owner.items() if rank == self.execution.ranks.rank and name in self.jobs]

    def made(self, names: Sequence[str]) -> Iterator[Piece]:
        """Merge some of this process's task vectors, or take them out of memory."""
        held = self._held_pieces(names)
        yield from merged_pieces({name: self.jobs[name] for name in names}) if held is None else held

    def parts(self, name: str) -> Tensor:
        """Return what the rule makes of each task in a tensor, just as the merge makes it.

        That is before coefficients and mask; `add_parts` makes the merged tensor of it. What is averaged, such as
        running statistics, has no parts: ``plan.only(vectors.averaged).tensors()`` of a recipe with the coefficients
        makes that.

        Args:
            name: One of the plan's `stream`'s names, which are those of the weights.

        Returns:
            ``(T, *shape)`` in the recipe's dtype, on the device on which tensors are merged.

        Raises:
            UnknownNameError: It is no weight that is merged.
            ValueError: The rule is no sum over tasks, or the recipe does not prune on parts.
        """
        require_known("merged weight", name, self.stream.names)
        if not self.jobs[name].on_parts:
            raise ValueError(f"parts need a recipe with prune_on='parts', not {self.recipe.prune_on!r}.")
        return parts_of(name, self.jobs[name])

    def _added(self, names: Sequence[str]) -> Iterator[tuple[str, slice, Tensor]]:
        """Do the same and add them to the base, with their coefficients."""
        jobs, held = {name: self.jobs[name] for name in names}, self._held_pieces(names)
        yield from added_pieces(jobs) if held is None else added_to_base(held, jobs)

    def _held_pieces(self, names: Sequence[str]) -> Iterator[Piece] | None:
        if self.held is None or not self.held.keys() >= set(names):
            return None
        held = self.held
        return (piece for name in names for piece in held[name].pieces(name, self.vectors.base(name).reshape(-1)))

    def _remade(self, recipe: MergeRecipe) -> MergePlan:
        """Return the plan with the jobs of another task or calibration, of which nothing is made yet."""
        names, jobs, limit = self.stream.names, self.jobs, self.execution.max_memory
        if not names:
            return replace(self, recipe=recipe)
        rules = rules_of(recipe, plain(jobs[names[0]].rule), self.stream.shapes, self.vectors.tied)
        if limit is not None:
            require_memory(limit, rules, self.stream, self._thinned)
        treats = recipe.calibrate is None or any(isinstance(rule, Calibrated) for rule in rules.values())
        if recipe.calibrate is not None and not treats and self.execution.ranks.rank == 0:
            told = f"treats none of {len(names)} tensors; the rule alone makes them"
            warnings.warn(f"calibrate={recipe.calibrate.name!r} {told}.", stacklevel=2)
        own = {name: replace(jobs[name], task=recipe.task, rule=rule) for name, rule in rules.items()}
        made = replace(self, recipe=recipe, jobs={**jobs, **own}, held=None)
        made._limit_memo()
        return made

    def _limit_memo(self, taken: int = 0) -> None:
        """Let what is remembered have the memory that the merge leaves, besides some bytes that are taken."""
        if self.execution.memo is not None:
            rules = {name: self.jobs[name].rule for name in self.stream.names}
            self.execution.memo.allow(room_to_remember(rules, self.stream, self._thinned) - taken)

    @property
    def _thinned(self) -> Layers | None:
        """The layers whose elements are ranked together."""
        return plan_layers(self.vectors, self.recipe, self.layers) if self.recipe.elements else None

    @cached_property
    def _magnitudes(self) -> dict[str, Tensor]:
        rank = self.execution.ranks.rank
        # Of the whole model, also where `only` left tensors out.
        weights = [name for name in self.stream.names if self.jobs[name].owner == rank]
        return magnitudes(self.made(weights), self.stream)

    def _scales(self, recipe: MergeRecipe, layers: Layers | None) -> dict[str, float]:
        """Return the coefficient of each weight."""
        vectors, scaling, pruned = self.vectors, recipe.layer_scaling, self.mask is not None or recipe.elements
        # In execution order, as far as it is known.
        names = self.stream.names if pruned else natural_order(self.stream.names)
        names = names if layers is None else merged_layers(vectors, layers).tensors
        if isinstance(scaling, Mapping):
            layers = plan_layers(vectors, recipe, layers)
            further = further_names(vectors, layers)
            scaling = {further.get(name, name): factor for name, factor in scaling.items()}
        calibrated = {name for name in self.stream.names if isinstance(self.jobs[name].rule, Calibrated)}
        after = 1.0 if recipe.calibrate is None else recipe.calibrate.scale
        own = {name: after if name in calibrated else recipe.effective_scale for name in self.stream.names}

        def alpha() -> float:
            # What a calibration takes holds the scale, so that this is in all that is scaled.
            return published_alpha(self._magnitudes, len(vectors), {} if recipe.calibrate is None else own)

        factors = tensor_factors(scaling, tuple(names), layers, alpha)
        scales = {name: scale * factors[name] for name, scale in own.items()}
        limit = torch.finfo(recipe.torch_dtype).max
        if beyond := [name for name, scale in scales.items() if not abs(scale) <= limit]:
            told = f"{scales[beyond[0]]:g} for {beyond[0]!r} is beyond {limit:g}"
            raise ValueError(f"scale: {told}, the largest of {recipe.torch_dtype}.")
        return scales

    def _own_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, pieces in groupby(self.pieces(), key=lambda piece: piece[0]):
            tensor = self._empty(name)
            for _, elements, values in pieces:
                tensor.view(-1)[elements] = values
            yield name, tensor

    def _empty(self, name: str) -> Tensor:
        header = self.vectors.headers[name]
        return torch.empty(header.shape, dtype=header.dtype, device=self.execution.device)


def treatment_of(rule: MergeRule[Any], stream: Stream) -> str | None:
    """Return how many tensors a rule does its own with, in words, read off headers; see `MergePlan`."""
    treated = rule.treated(stream)
    if treated is None:
        return None
    return f"rule {rule.name!r} treated {len(treated)} of {len(stream.names)} tensors {rule.treats}"


def require_task(recipe: MergeRecipe, vectors: TaskVectors) -> None:
    """Raise an `UnknownNameError` where the task whose own model is wanted is none of the task vectors'."""
    if recipe.task is not None:
        require_known("task", recipe.task, vectors.tasks)
