"""A recipe's coefficients of parts, by task and layer, brought to the layers and tensors of a merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lwptv_lightning.checkpoints import some_of
from lwptv_lightning.layers import Layers
from lwptv_lightning.merging.ties import further_names, patterns_of_layers
from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.registry import first_match, require_known, require_matches, shown
from lwptv_lightning.saliency import LayerMask, LayerTable, merged_layers
from lwptv_lightning.task_vectors import TaskVectors


def require_coefficients(
    vectors: TaskVectors, recipe: MergeRecipe, layers: Callable[[str], Layers], new: str | None = None
) -> None:
    """Raise what a merge would raise of a recipe's coefficients, before a training after which it merges.

    Args:
        vectors: The task vectors.
        recipe: The recipe.
        layers: Gives the model's layers of a granularity, where these are needed.
        new: The task that is trained, and is merged besides.
    """
    if recipe.coefficients is not None:
        tasks = vectors.tasks if new is None else (*vectors.tasks, new)
        layer_coefficients(vectors, recipe, merged_layers(vectors, layers(recipe.granularity)), tasks)


def require_tasks(recipe: MergeRecipe, tasks: Sequence[str]) -> None:
    """Raise unless a recipe's coefficients, where it has some, are of just the tasks that are merged.

    Raises:
        UnknownNameError: They name a task that is not among these.
        ValueError: They leave one out.
    """
    given = recipe.coefficients
    if given is None:
        return
    for task in given:
        require_known("task in coefficients", task, tasks)
    if absent := [task for task in tasks if task not in given]:
        raise ValueError(
            f"coefficients hold none for these of the {len(tasks)} tasks: {some_of(absent)} "
            f"They hold those of {some_of(given)}"
        )


def layer_coefficients(
    vectors: TaskVectors, recipe: MergeRecipe, layers: Layers, tasks: Sequence[str] | None = None
) -> Tensor | None:
    """Return the coefficient of each task and layer, ``(T, L)`` in the recipe's dtype; None where it has none.

    Args:
        vectors: The task vectors.
        recipe: The recipe.
        layers: The layers with merged tensors; a glob that matches none of their names may match further ones of a
            tied weight.
        tasks: Those that are merged; the task vectors' by default.

    Raises:
        UnknownNameError: A task that is not merged, or a glob that matches no layer.
        ValueError: A task or a layer has no coefficient, or one is beyond the dtype.
    """
    if recipe.coefficients is None:
        return None
    tasks = vectors.tasks if tasks is None else tasks
    require_tasks(recipe, tasks)
    further, limit = further_names(vectors, layers), torch.finfo(recipe.torch_dtype).max
    rows = [_row(task, recipe.coefficients[task], layers, further) for task in tasks]
    for task, row in zip(tasks, rows, strict=True):
        if max(row, default=0.0) > limit:
            beyond = f"{max(row):g} of task {shown(task)} is beyond {limit:g}"
            raise ValueError(f"coefficients: {beyond}, the largest of {recipe.torch_dtype}.")
    shape = len(tasks), len(layers)
    return torch.tensor(rows, dtype=torch.float64, device="cpu").to(recipe.torch_dtype).reshape(shape)


def _row(task: str, given: Mapping[str, float], layers: Layers, further: Mapping[str, str]) -> list[float]:
    kind = f"layer in coefficients of task {shown(task)}"
    factors: dict[str, float] = {}
    for pattern, factor in given.items():
        for meant in patterns_of_layers([pattern], layers, further):
            factors.setdefault(meant, factor)
    require_matches(kind, factors, layers.names)
    found = dict(zip(layers.names, map(first_match(factors), layers.names), strict=True))
    if absent := [layer for layer, pattern in found.items() if pattern is None]:
        raise ValueError(
            f"coefficients of task {shown(task)} match none of these of the {len(layers)} layers: {some_of(absent)} "
            "Every layer needs one; a last glob '*' stands for all others."
        )
    return [factors[pattern] for pattern in found.values() if pattern is not None]


def coefficients_table(coefficients: Tensor, vectors: TaskVectors, layers: Layers) -> LayerTable:
    """Return coefficients ``(T, L)`` as scores of the layers, higher is kept."""
    numel = torch.tensor([sum(vectors.headers[name].numel for name in layer.tensors) for layer in layers]).double()
    return LayerTable(vectors.tasks, layers.names, numel, coefficients.double())


def without_zeros(mask: LayerMask, coefficients: Tensor | None, layers: Layers) -> LayerMask:
    """Return a mask of the layers that also prunes what has a coefficient of zero; another's mask as it is."""
    if coefficients is None:
        return mask
    mask = mask.in_order_of(layers.names)
    if mask.kept.shape != coefficients.shape:
        return mask  # of other layers, which is refused where it is used
    return LayerMask(mask.tasks, mask.layers, mask.kept & (coefficients > 0).to(mask.kept.device))


def by_tensor(coefficients: Tensor | None, layers: Layers | None) -> dict[str, Tensor]:
    """Return the coefficients of each tensor, ``(T,)``; nothing where there are none."""
    if coefficients is None or layers is None:
        return {}
    return {name: coefficients[:, index] for index, layer in enumerate(layers) for name in layer.tensors}
