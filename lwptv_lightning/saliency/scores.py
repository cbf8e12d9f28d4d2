"""Saliency scores: how much of a layer's part of a task vector is worth keeping; higher is kept.

The paper's abstract (arXiv 2506.09093) fixes that each layer of each task vector has a score of its redundancy, not
the form of that score. Here are several forms to choose from; the default, `mean_abs`, kept in-domain accuracy best
in our measurements. A new score is one function with the decorator `saliency_score`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lwptv_lightning.functional import random_uniform
from lwptv_lightning.registry import Registry, require_kind, require_known, require_whole
from lwptv_lightning.saliency.statistics import LayerStatistics
from lwptv_lightning.saliency.table import LayerTable

SaliencyScore: TypeAlias = Callable[[LayerStatistics, int], Tensor]
"""Statistics and a seed to scores ``(T, L)``; most scores have no use for the seed."""

SCORES: Registry[SaliencyScore] = Registry("saliency score")


def saliency_score(function: Callable[..., Tensor]) -> SaliencyScore:
    """Register a score under its function's name.

    The function maps `LayerStatistics` and a seed to a tensor of shape ``(T, L)`` in which higher means more worth
    keeping.

    Example:
        >>> @saliency_score
        ... def l1(stats, seed):
        ...     '''L1 norm.'''
        ...     return stats.l1
        >>> "l1" in SCORES
        True
        >>> _ = SCORES._records.pop("l1")  # leave the registry as it was
    """
    return SCORES.register(function.__name__, function)


def score_layers(stats: LayerStatistics, score: str = "mean_abs", *, seed: int = 0) -> LayerTable:
    """Score every layer of every task vector.

    Args:
        stats: From `collect_statistics`; no weight is read again.
        score: A registered name, or one with a minus sign before it for the reversed order.
        seed: For the score ``"random"``.

    Returns:
        Scores ``(T, L)``; higher is kept.

    Raises:
        UnknownNameError: No such score.

    Example:
        >>> from lwptv_lightning import TaskVectors, collect_statistics, layers_from_names
        >>> vectors = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.tensor([3.0, -4.0])}})
        >>> stats = collect_statistics(vectors, layers_from_names(vectors.names))
        >>> score_layers(stats, "mean_abs").values, score_layers(stats, "-l2").values
        (tensor([[3.5000]], dtype=torch.float64), tensor([[-5.]], dtype=torch.float64))
    """
    require_kind("stats", stats, LayerStatistics, "LayerStatistics, from collect_statistics")
    require_score(score)
    require_whole("seed", seed)
    values = SCORES[score.removeprefix("-")](stats, seed).to(torch.float64)
    expected = (len(stats.tasks), len(stats.layers))
    if values.shape != expected:
        raise ValueError(
            f"saliency score {score!r} returned shape {tuple(values.shape)}, expected (T, L) = {expected}."
        )
    if values.isnan().any():
        raise ValueError(f"saliency score {score!r} is NaN for some layers.")
    return LayerTable(stats.tasks, stats.layers.names, stats.numel, -values if score.startswith("-") else values)


def require_score(score: str) -> None:
    """Raise `UnknownNameError` unless ``score`` is registered, with or without a minus sign before it."""
    require_kind("score", score, str, "the name of a saliency score")
    require_known("saliency score", score, (*SCORES, *(f"-{name}" for name in SCORES if score.startswith("-"))))


def _mean(sums: Tensor, stats: LayerStatistics) -> Tensor:
    """Divide sums by the elements of their layers, ``(T, L)``; 0 for a layer without any."""
    return sums / stats.numel.clamp(min=1)


@saliency_score
def mean_abs(stats: LayerStatistics, seed: int) -> Tensor:
    """Mean absolute change, ``sum |tau| / n``: the default."""
    return _mean(stats.l1, stats)


@saliency_score
def rms(stats: LayerStatistics, seed: int) -> Tensor:
    """Root mean square change, ``sqrt(sum tau^2 / n)``."""
    return _mean(stats.squared, stats).sqrt()


@saliency_score
def l2(stats: LayerStatistics, seed: int) -> Tensor:
    """Euclidean norm, ``|tau|``; not divided by size, so that it mostly drops small layers."""
    return stats.squared.sqrt()


@saliency_score
def relative_l2(stats: LayerStatistics, seed: int) -> Tensor:
    """Norm of the change relative to the base's, ``|tau| / |theta_0|``; infinite where only the base is zero."""
    ratio = stats.squared.sqrt() / stats.base_squared.sqrt()
    return ratio.nan_to_num(nan=0.0, posinf=torch.inf)


@saliency_score
def deviation(stats: LayerStatistics, seed: int) -> Tensor:
    """Root mean square distance from the mean task vector, ``sqrt(|tau_t - mean|^2 / n)``; 0 for a single task."""
    return _mean(stats.deviation_squared, stats).sqrt()


@saliency_score
def uniqueness(stats: LayerStatistics, seed: int) -> Tensor:
    """How little the mean task vector says of this one, ``1 - cos(tau_t, mean)``, in [0, 2]; 0 for a zero vector."""
    own, mean = stats.squared.sqrt(), stats.mean_squared.sqrt()
    # |own| |mean| - <own, mean> is half of |own - mean|^2 - (|own| - |mean|)^2, which is exact where the two are near.
    longer = (2 * stats.deviation_dot + stats.deviation_squared) / (own + mean)
    beyond = (stats.deviation_squared - longer.square()) / (2 * own * mean)
    return torch.where(own * mean > 0, beyond, 0.0).clamp(0, 2)


@saliency_score
def conflict(stats: LayerStatistics, seed: int) -> Tensor:
    """Share of elements whose sign is opposite to the mean task vector's, in [0, 1]."""
    return _mean(stats.opposing, stats)


@saliency_score
def random(stats: LayerStatistics, seed: int) -> Tensor:
    """Uniform random numbers in [0, 1) from the seed: the control that any other score has to beat.

    Each is drawn by the names of its task and layer, whatever others there are and in whichever order.
    """
    rows = [[random_uniform(seed, task, layer) for layer in stats.layers.names] for task in stats.tasks]
    return torch.tensor(rows, dtype=torch.float64)


def describe_scores(names: Sequence[str] | None = None) -> dict[str, str]:
    """Return each registered score's name and the first line of its docstring."""
    return {name: (SCORES[name].__doc__ or "").partition("\n")[0] for name in names or SCORES}
