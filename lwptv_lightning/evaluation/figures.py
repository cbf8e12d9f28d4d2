"""A torchmetrics metric's result as named numbers, and its state over several processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_mean

_MOST = 10_000
"""How many figures a metric may have on one loader; a logger would take hours for those of a large matrix."""


def figures_of(name: str, result: Any, metric: str) -> dict[str, float]:
    """Return a metric's result under a name; what is not one number part by part, under ``name/<part>``.

    Parts are the keys of a dict, and the places in a tensor or sequence.

    Raises:
        TypeError: A part is no number.
        ValueError: There are too many.

    Example:
        >>> figures_of("id/a", {"top1": torch.tensor(0.5), "recall": torch.tensor([0.25, 1.0])}, "Mine")
        {'id/a/top1': 0.5, 'id/a/recall/0': 0.25, 'id/a/recall/1': 1.0}
    """
    size = result.numel() if isinstance(result, Tensor) else 0
    if size > _MOST:
        shape = tuple(result.shape)
        raise ValueError(f"{metric} finds {size} numbers of shape {shape} for {name!r}; at most {_MOST} are logged.")
    if size == 1 or isinstance(result, int | float):
        return {name: float(result)}
    if isinstance(result, Mapping):
        parts = [(str(key), part) for key, part in result.items()]
    elif isinstance(result, Tensor | list | tuple):
        parts = [(str(index), part) for index, part in enumerate(result)]
    else:
        raise TypeError(f"{metric} finds a {type(result).__name__} for {name!r}; only numbers can be logged.")
    return {key: value for part, inner in parts for key, value in figures_of(f"{name}/{part}", inner, metric).items()}


def states_of(metric: nn.Module) -> list[dict[str, Any]]:
    """Return the states of a metric and of those that it is made of, in the host's memory."""
    return [apply_to_collection(part.metric_state, Tensor, lambda state: state.cpu()) for part in _metrics(metric)]


def load_states(metric: nn.Module, states: Sequence[list[dict[str, Any]]], batches: Sequence[int]) -> None:
    """Give a metric the states of several processes, which saw so many batches, reduced as torchmetrics does."""
    for index, part in enumerate(_metrics(metric)):
        # Its reductions have no public name.
        for name, reduction in part._reductions.items():
            reduced = _reduced([each[index][name] for each in states], reduction, batches)
            setattr(part, name, apply_to_collection(reduced, Tensor, lambda state, to=part.device: state.to(to)))


def _reduced(values: Sequence[Any], reduction: Any, batches: Sequence[int]) -> Any:
    if isinstance(values[0], list):
        return [item for items in values for item in items]
    if len(values) == 1:
        return values[0]
    stacked = torch.stack(list(values))
    if reduction is dim_zero_mean:
        # A mean over batches is that of all processes only if each weighs as many batches as it saw.
        weights = torch.tensor(batches, dtype=torch.float64) / sum(batches)
        return torch.tensordot(weights, stacked.double(), dims=1).to(stacked.dtype)
    return stacked if reduction is None else reduction(stacked)


def _metrics(metric: nn.Module) -> Iterator[Metric]:
    return (part for part in metric.modules() if isinstance(part, Metric))
