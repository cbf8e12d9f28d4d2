"""What is decided of a merge before its first tensor is made: what is pruned, what the rule knows, who makes what."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lwptv_lightning.engine import Execution, Ranks, Stream, divide
from lwptv_lightning.layers import Layers
from lwptv_lightning.merging.alike import unscaled
from lwptv_lightning.merging.calibrated import rules_of
from lwptv_lightning.merging.coefficients import by_tensor, layer_coefficients, require_tasks, without_zeros
from lwptv_lightning.merging.combine import Job
from lwptv_lightning.merging.data import require_data
from lwptv_lightning.merging.memory import require_memory
from lwptv_lightning.merging.modified import rule_of
from lwptv_lightning.merging.plan import MergePlan, require_task, treatment_of
from lwptv_lightning.merging.prune import plan_layers, prune_layers
from lwptv_lightning.merging.remembering import remembering
from lwptv_lightning.merging.ties import by_first_names, data_by_first_name
from lwptv_lightning.modifiers import Reweighting, reweighted
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import natural_order
from lwptv_lightning.rules import MergeRule, RunningStatistics
from lwptv_lightning.saliency import LayerMask, masked, masked_beside, merged_layers, thinned
from lwptv_lightning.task_vectors import TaskVectors

if TYPE_CHECKING:
    from lwptv_lightning.merging.merge import Merge


def make_plan(merge: Merge, execution: Execution) -> MergePlan:
    """Prune, and let the rule survey the whole model; see `Merge.plan`."""
    vectors, recipe, ranks = merge.vectors, merge.recipe, execution.ranks
    _check(merge)
    prunes = merge.mask is not None or recipe.prunes_layers or recipe.elements is not None
    weighs = recipe.coefficients is not None
    layers = plan_layers(vectors, recipe, merge.layers) if prunes or weighs else merge.layers
    coefficients = None if layers is None else layer_coefficients(vectors, recipe, layers)
    names = vectors.names if layers is None else merged_layers(vectors, layers).tensors
    data = None if merge.data is None else data_by_first_name(merge.data, vectors)
    plain = Stream.of(vectors, names, dtype=recipe.torch_dtype, data=data, execution=execution)
    rule = by_first_names(rule_of(recipe), vectors.tied)
    reweighting = None if recipe.reweight is None else by_first_names(recipe.reweight, vectors.tied)
    whole = reweighted(plain, reweighting)
    treatment = treatment_of(rule, whole)
    if ranks.rank == 0:
        for doubt in _doubts(recipe, rule, reweighting, whole):
            warnings.warn(doubt, stacklevel=2)
    rules = rules_of(recipe, rule, whole.shapes, vectors.tied)
    thins = layers if recipe.elements is not None else None
    if execution.max_memory is not None:  # what layers are pruned is not known yet, and pruning only lessens the need
        require_memory(execution.max_memory, rules, whole, thins)
    execution = remembering(recipe, rules, whole, thins)
    pruning = None
    if merge.mask is None and (recipe.prunes_layers or weighs):
        pruning = prune_layers(merge, execution, scored=False)
    mask = merge.mask if pruning is None else pruning.mask
    if mask is not None and layers is not None:
        mask = without_zeros(mask, coefficients, layers)
    owner = _owner(vectors, names, thins, ranks)
    plain = replace(plain, owner=owner, execution=execution)
    whole = reweighted(plain, reweighting)
    pruned, averaged = _views(merge, layers, mask, plain, whole)
    with ranks.sharing_errors(), execution.exact():
        vectors.sample.require_differences({name: pruned.kept(name).tolist() for name in names})
        own = _jobs(rule, recipe, whole, pruned, by_tensor(coefficients, layers)) if names else {}
        jobs = own | _averaging_jobs(averaged)
    decided: dict[str, Any] = {"pruning": pruning, "mask": mask, "stream": pruned, "jobs": jobs, "owner": owner}
    # The jobs are of no task yet, and nothing is calibrated.
    given: dict[str, Any] = {"vectors": vectors, "layers": merge.layers, "data": merge.data}
    given["recipe"] = unscaled(merge.recipe)
    return MergePlan(execution=execution, treatment=treatment, **given, **decided).rescaled(merge.recipe)


def require_divisible(recipe: MergeRecipe, vectors: TaskVectors) -> None:
    """Raise a `ValueError` where a rule or a calibration cannot divide a matrix as it says; reads headers alone."""
    stream = Stream.of(vectors)
    rule = by_first_names(rule_of(recipe), vectors.tied)
    rule.treated(stream)
    rules_of(recipe, rule, stream.shapes, vectors.tied)


def _doubts(recipe: MergeRecipe, rule: MergeRule[Any], reweighting: Reweighting | None, whole: Stream) -> Iterator[str]:
    """Say what of a recipe has no effect on these task vectors, or hardly the one that is wanted."""
    if whole.names and rule.treated(whole) == ():
        yield f"{treatment_of(rule, whole)}; it takes {rule.tensors}."
    # Parts can be weighed and pruned, after which the sum is another.
    if recipe.prune_on != "parts" and (doubt := rule.doubt(len(whole.tasks))) is not None:
        yield doubt
    if reweighting is not None and whole.names and not any(itertools.starmap(reweighting.treats, whole.shapes.items())):
        told = f"treats none of {len(whole.names)} tensors; their task vectors stay as they are"
        yield f"reweight={reweighting.name!r} {told}."


def _owner(vectors: TaskVectors, names: Sequence[str], thins: Layers | None, ranks: Ranks) -> dict[str, int]:
    """Divide all tensors among processes: those of a layer that is ranked together, and of one weight, to the same."""
    # Making one tensor of a layer whose elements are ranked together reads them all, so one process has them all.
    together = [(name,) for name in names] if thins is None else [layer.tensors for layer in thins]
    groups = [tuple(each for name in group for each in vectors.names_of(name)) for group in together]
    grouped = {name for group in groups for name in group}
    rest = [(name,) for name in vectors.headers if name not in grouped]
    return divide([*groups, *rest], vectors.headers, ranks.size)


def _views(
    merge: Merge, layers: Layers | None, mask: LayerMask | None, plain: Stream, whole: Stream
) -> tuple[Stream, Stream]:
    """Return what is left of the weights, and of what is averaged, where something is pruned.

    The weights' task vectors are reweighted in ``whole``; what is averaged is not.
    """
    vectors, elements = merge.vectors, merge.recipe.elements
    averaged = replace(plain, shapes={name: vectors.headers[name].shape for name in vectors.averaged}, data=None)
    if layers is not None and mask is not None:
        ordered = mask.in_order_of(layers.names)
        order = _order(vectors, merge.layers)
        return masked(whole, layers, ordered), masked_beside(averaged, layers, ordered, order)
    if layers is not None and elements is not None:
        nothing = torch.zeros(len(vectors), dtype=torch.bool)
        left = replace(averaged, kept=lambda name: nothing) if elements.ratio == 1 else averaged
        return thinned(whole, layers, elements), left
    return whole, averaged


def _order(vectors: TaskVectors, layers: Layers | None) -> tuple[str, ...]:
    """Return the names of all merged tensors in execution order, or in natural order where it is not known."""
    known = () if layers is None else layers.tensors
    return known if set(vectors.averaged) <= set(known) else natural_order(vectors.headers)


def _jobs(
    rule: MergeRule[Any], recipe: MergeRecipe, whole: Stream, pruned: Stream, coefficients: Mapping[str, Tensor]
) -> dict[str, Job]:
    """Return a job of scale 1 for each weight, after the rule's survey of the model."""
    on_parts = recipe.prune_on == "parts"
    # The rule makes its parts of the whole task vectors; the mask acts on the parts.
    seen = whole if on_parts else pruned
    kept = {name: pruned.kept(name) for name in pruned.names}
    # Where nothing is left to merge, nothing is read.
    survey = rule.survey(seen) if any(bool(tasks.any()) for tasks in kept.values()) else None
    owner = pruned.owner or {}
    common: dict[str, Any] = {"rule": rule, "stream": seen, "survey": survey, "on_parts": on_parts}
    return {
        name: Job(kept=tasks, owner=owner[name], coefficients=coefficients.get(name), **common)
        for name, tasks in kept.items()
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
    require_data(rule_of(merge.recipe), merge.data, merge.vectors)
    require_task(merge.recipe, merge.vectors)
    require_tasks(merge.recipe, merge.vectors.tasks)
    if merge.mask is not None and merge.recipe.elements is not None:
        raise ValueError("mask=... prunes whole layers; it cannot stand beside the recipe's elements.")
