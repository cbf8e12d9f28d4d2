"""`MergePlan`: all that is decided of a merge before its first tensor is made."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lwptv_lightning.checkpoints import UNKNOWN, Provenance, some_of
from lwptv_lightning.engine import DataStatistics, Execution, Ranks, Stream, divide
from lwptv_lightning.layers import Layers
from lwptv_lightning.merging.combine import Job, merged_pieces, published_alpha
from lwptv_lightning.merging.data import fingerprint_of_data
from lwptv_lightning.merging.memory import require_memory
from lwptv_lightning.merging.prune import PruningPlan, plan_layers, prune_layers
from lwptv_lightning.merging.ties import data_by_first_name, further_names, rule_by_first_names
from lwptv_lightning.recipe import MergeRecipe, tensor_factors
from lwptv_lightning.registry import natural_order, require_known, shown
from lwptv_lightning.rules import MergeRule, RunningStatistics
from lwptv_lightning.saliency import LayerMask, masked, masked_beside, merged_layers, thinned
from lwptv_lightning.task_vectors import TaskVectors

if TYPE_CHECKING:
    from lwptv_lightning.merging.merge import Merge


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
        jobs: Name to job of each tensor that is merged, in the order in which they are made.
        owner: Name to the number of its process, of every tensor; those without a job are the base's and come last.
        layers: The layers that were given, in execution order; ``None`` where the tensors' names tell them.
        treatment: How many tensors the rule does its own with, in words, such as those that it treats as matrices;
            ``None`` where it treats all tensors alike.
        data: What was collected on data, for rules that need it.
    """

    vectors: TaskVectors
    recipe: MergeRecipe
    execution: Execution
    pruning: PruningPlan | None
    mask: LayerMask | None
    jobs: Mapping[str, Job]
    owner: Mapping[str, int]
    layers: Layers | None = None
    treatment: str | None = None
    data: DataStatistics | None = None

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
        seen = [name for name in self.vectors.names if self.jobs[name].kept.any()]
        said = (*self.vectors.doubts, *self.vectors.small_doubts(seen)) if self.execution.ranks.rank == 0 else ()
        for doubt in said:
            warnings.warn(f"{doubt} `lwptv check` says more.", stacklevel=2)
        own = [name for name, rank in self.owner.items() if rank == self.execution.ranks.rank]
        for piece in merged_pieces({name: self.jobs[name] for name in own if name in self.jobs}):
            yield piece.name, piece.elements, piece.added(self.jobs[piece.name])
        for name, first in self.vectors.tied.items():
            if self.owner.get(name) == self.execution.ranks.rank:  # made once more, so that no piece has to be held
                job = self.jobs[first]
                yield from ((name, piece.elements, piece.added(job)) for piece in merged_pieces({first: job}))
        for name in own:
            if name not in self.jobs and name not in self.vectors.tied:
                values = self.vectors.base(name).reshape(-1)
                yield name, slice(0, len(values)), values
        self.require_unchanged()

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

    def _own_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, pieces in groupby(self.pieces(), key=lambda piece: piece[0]):
            tensor = self._empty(name)
            for _, elements, values in pieces:
                tensor.view(-1)[elements] = values
            yield name, tensor

    def _empty(self, name: str) -> Tensor:
        header = self.vectors.headers[name]
        return torch.empty(header.shape, dtype=header.dtype, device=self.execution.device)


def provenance_of(
    vectors: TaskVectors,
    recipe: MergeRecipe,
    mask: LayerMask | None,
    layers: Layers | None = None,
    data: DataStatistics | None = None,
    known: tuple[str, dict[str, str]] | None = None,
) -> Provenance:
    """Return what a file of a merged model says of itself; see `MergePlan.provenance`."""
    base, tasks = vectors.fingerprints() if known is None else known
    floating = [name for name in vectors.copied if vectors.headers[name].dtype.is_floating_point]
    return Provenance(
        kind="merged",
        base=base,
        tasks=tasks,
        recipe=recipe.to_dict(),
        scale=recipe.effective_scale,
        mask=None if mask is None else {task: [name for name in row if row[name]] for task, row in mask},
        layers=None if layers is None else {layer.name: list(layer.tensors) for layer in layers},
        excluded=list(vectors.excluded),
        roles={"averaged": list(vectors.averaged), "copied": floating, "tied": dict(vectors.tied)},
        data=None if data is None else fingerprint_of_data(data),
        versions=Provenance.current_versions(),
    )


def make_plan(merge: Merge, execution: Execution) -> MergePlan:
    """Prune, and let the rule survey the whole model; see `Merge.plan`."""
    vectors, recipe, ranks = merge.vectors, merge.recipe, execution.ranks
    _check(merge)
    prunes = merge.mask is not None or recipe.prunes_layers or recipe.elements is not None
    layers = plan_layers(vectors, recipe, merge.layers) if prunes else merge.layers
    names = vectors.names if layers is None else merged_layers(vectors, layers).tensors
    data = None if merge.data is None else data_by_first_name(merge.data, vectors)
    whole = Stream.of(vectors, names, dtype=recipe.torch_dtype, data=data, execution=execution)
    recipe = recipe.replace(rule=rule_by_first_names(recipe.rule, vectors.tied))
    treatment = treatment_of(recipe.rule, whole)
    if names and ranks.rank == 0 and recipe.rule.treated(whole) == ():
        warnings.warn(f"{treatment}; it takes {recipe.rule.tensors}.", stacklevel=2)
    thins = layers if recipe.elements is not None else None
    if execution.max_memory is not None:  # what layers are pruned is not known yet, and pruning only lessens the need
        require_memory(execution.max_memory, recipe.rule, whole, thins)
    pruning = prune_layers(merge, execution) if merge.mask is None and recipe.prunes_layers else None
    mask = merge.mask if pruning is None else pruning.mask
    owner = _owner(vectors, names, thins, ranks)
    whole = replace(whole, owner=owner)
    pruned, averaged = _views(merge, layers, mask, whole)
    with ranks.sharing_errors(), execution.exact():
        jobs = _jobs(recipe, whole, pruned) if names else {}
        in_order = natural_order(names) if layers is None else names
        jobs = _scaled(merge, jobs, pruned, in_order) | _averaging_jobs(averaged)
    decided: dict[str, Any] = {"pruning": pruning, "mask": mask, "jobs": jobs, "owner": owner, "treatment": treatment}
    given: dict[str, Any] = {"vectors": vectors, "recipe": merge.recipe, "layers": merge.layers, "data": merge.data}
    return MergePlan(execution=execution, **given, **decided)


def _owner(vectors: TaskVectors, names: Sequence[str], thins: Layers | None, ranks: Ranks) -> dict[str, int]:
    """Divide all tensors among processes: those of a layer that is ranked together, and of one weight, to the same."""
    # Making one tensor of a layer whose elements are ranked together reads them all, so one process has them all.
    together = [(name,) for name in names] if thins is None else [layer.tensors for layer in thins]
    groups = [tuple(each for name in group for each in vectors.names_of(name)) for group in together]
    grouped = {name for group in groups for name in group}
    rest = [(name,) for name in vectors.headers if name not in grouped]
    return divide([*groups, *rest], vectors.headers, ranks.size)


def _views(merge: Merge, layers: Layers | None, mask: LayerMask | None, whole: Stream) -> tuple[Stream, Stream]:
    """Return what is left of the weights, and of what is averaged, where something is pruned."""
    vectors, elements = merge.vectors, merge.recipe.elements
    averaged = replace(whole, shapes={name: vectors.headers[name].shape for name in vectors.averaged}, data=None)
    if layers is not None and mask is not None:
        ordered = mask.in_order_of(layers.names)
        order = _order(vectors, merge.layers)
        return masked(whole, layers, ordered), masked_beside(averaged, layers, ordered, order)
    if layers is not None and elements is not None:
        nothing = torch.zeros(len(vectors), dtype=torch.bool)
        left = replace(averaged, kept=lambda name: nothing) if elements.ratio == 1 else averaged
        return thinned(whole, layers, elements), left
    return whole, averaged


def _scaled(merge: Merge, jobs: Mapping[str, Job], pruned: Stream, in_order: Sequence[str]) -> dict[str, Job]:
    """Return jobs with the recipe's coefficient of each tensor; names are in execution order, as far as it is known."""
    vectors, recipe = merge.vectors, merge.recipe
    own = {name: job for name, job in jobs.items() if job.owner == pruned.execution.ranks.rank}
    scaling, layers = recipe.layer_scaling, None
    if isinstance(scaling, Mapping):
        layers = plan_layers(vectors, recipe, merge.layers)
        further = further_names(vectors, layers)
        scaling = {further.get(name, name): factor for name, factor in scaling.items()}
    factors = tensor_factors(scaling, tuple(in_order), layers, lambda: published_alpha(own, pruned))
    scales = {name: recipe.effective_scale * factors[name] for name in jobs}
    for name, scale in scales.items():
        if not abs(scale) <= (limit := torch.finfo(recipe.torch_dtype).max):
            raise ValueError(f"scale: {scale:g} for {name!r} is beyond {limit:g}, the largest of {recipe.torch_dtype}.")
    return {name: replace(job, scale=scales[name]) for name, job in jobs.items()}


def treatment_of(rule: MergeRule[Any], stream: Stream) -> str | None:
    """Return how many tensors a rule does its own with, in words, read off headers; see `MergePlan`."""
    treated = rule.treated(stream)
    if treated is None:
        return None
    return f"rule {rule.name!r} treated {len(treated)} of {len(stream.names)} tensors {rule.treats}"


def _order(vectors: TaskVectors, layers: Layers | None) -> tuple[str, ...]:
    """Return the names of all merged tensors in execution order, or in natural order where it is not known."""
    known = () if layers is None else layers.tensors
    return known if set(vectors.averaged) <= set(known) else natural_order(vectors.headers)


def _jobs(recipe: MergeRecipe, whole: Stream, pruned: Stream) -> dict[str, Job]:
    """Return a job of scale 1 for each weight, after the rule's survey of the model."""
    on_parts = recipe.prune_on == "parts"
    # The rule makes its parts of the whole task vectors; the mask acts on the parts.
    seen = whole if on_parts else pruned
    common: dict[str, Any] = {"survey": recipe.rule.survey(seen), "on_parts": on_parts, "task": recipe.task}
    return {
        name: Job(rule=recipe.rule, stream=seen, kept=pruned.kept(name), owner=(pruned.owner or {})[name], **common)
        for name in pruned.names
    }


def _averaging_jobs(averaged: Stream) -> dict[str, Job]:
    """Return a job for each tensor that is no weight: a mean over the tasks, whatever the recipe."""
    owner, rule = averaged.owner or {}, RunningStatistics()
    return {
        # Rounding must not make a variance negative.
        name: Job(
            rule=rule,
            stream=averaged,
            kept=averaged.kept(name),
            owner=owner[name],
            least=0.0 if name.endswith("running_var") else None,
        )
        for name in averaged.names
    }


def _check(merge: Merge) -> None:
    rule, vectors, data = merge.recipe.rule, merge.vectors, merge.data
    vectors.require_differences()
    if rule.needs and data is None:
        raise ValueError(f"rule {rule.name!r} needs statistics=... or data=..., its {rule.needs} on each task's data.")
    if data is not None and (absent := [name for name in vectors.tasks if name not in data]):
        raise ValueError(
            f"statistics has no entry for task {shown(absent[0])}; it has {some_of(data) if data else 'none.'}"
        )
    if rule.needs == "gram" and data is not None:
        _check_grams(vectors, data)
    if rule.needs == "fisher" and data is not None:
        _check_shapes(vectors, data)
    if merge.recipe.task is not None:
        require_known("task", merge.recipe.task, vectors.tasks)
    if merge.mask is not None and merge.recipe.elements is not None:
        raise ValueError("mask=... prunes whole layers; it cannot stand beside the recipe's elements.")


def _check_grams(vectors: TaskVectors, data: DataStatistics) -> None:
    """Raise where what is called a Gram matrix of a layer's inputs is none, or not finite."""
    for task in vectors.tasks:
        for name in vectors.names:
            shape, found = (
                vectors.headers[name].shape,
                data[task].get(name, data[task].get(name.removesuffix(".weight"))),
            )
            if found is None or len(shape) < 2:
                continue
            if found.shape != (shape[1], shape[1]):
                raise ValueError(
                    f"the data statistics of task {task!r} have shape {tuple(found.shape)} for {name!r}, expected "
                    f"{(shape[1], shape[1])}, the inputs' Gram matrix."
                )
            if not torch.isfinite(found).all():
                raise ValueError(f"the data statistics of task {task!r} are NaN or infinite for {name!r}.")


def _check_shapes(vectors: TaskVectors, data: DataStatistics) -> None:
    """Raise where there is not one number for each weight."""
    for task in vectors.tasks:
        for name in vectors.names:
            if name in data[task] and data[task][name].shape != vectors.headers[name].shape:
                raise ValueError(
                    f"the data statistics of task {shown(task)} have shape {tuple(data[task][name].shape)} for "
                    f"{shown(name)}, expected {vectors.headers[name].shape}, one number for each weight."
                )
